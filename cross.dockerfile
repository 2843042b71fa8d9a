# The image that cross.toml builds in: compilers of this machine, libraries of the robot's in a tree of
# their own. Side by side with this machine's they would have to be of the same version, and those of
# armhf could not be had with Debian's security updates.
FROM debian:bookworm
ARG GNU
ARG DEBIAN
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates pkg-config qemu-user-static mmdebstrap gcc libc6-dev "gcc-$GNU" "g++-$GNU" \
    && rm -rf /var/lib/apt/lists/*
RUN mmdebstrap --quiet --mode=chrootless --variant=extract "--architectures=$DEBIAN" \
        --include=libc6-dev,libgcc-12-dev,libstdc++-12-dev,libtss2-dev \
        bookworm /robot "deb http://deb.debian.org/debian bookworm main" \
    && for compiler in gcc g++; do \
        printf '#!/bin/sh\nexec %s --sysroot=/robot "$@"\n' "$GNU-$compiler" >"/usr/local/bin/robot-$compiler" \
        && chmod +x "/usr/local/bin/robot-$compiler" || exit 1; \
    done

# Of both targets; the other's are not asked for.
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=robot-gcc \
    CC_aarch64_unknown_linux_gnu=robot-gcc \
    CXX_aarch64_unknown_linux_gnu=robot-g++ \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /robot" \
    PKG_CONFIG_LIBDIR_aarch64_unknown_linux_gnu=/robot/usr/lib/aarch64-linux-gnu/pkgconfig:/robot/usr/share/pkgconfig \
    CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=robot-gcc \
    CC_armv7_unknown_linux_gnueabihf=robot-gcc \
    CXX_armv7_unknown_linux_gnueabihf=robot-g++ \
    AR_armv7_unknown_linux_gnueabihf=arm-linux-gnueabihf-ar \
    CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_RUNNER="qemu-arm-static -L /robot" \
    PKG_CONFIG_LIBDIR_armv7_unknown_linux_gnueabihf=/robot/usr/lib/arm-linux-gnueabihf/pkgconfig:/robot/usr/share/pkgconfig \
    PKG_CONFIG_SYSROOT_DIR=/robot \
    PKG_CONFIG_ALLOW_CROSS=1
