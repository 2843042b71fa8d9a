SUMMARY = "Lets a robot use a cloud model on encrypted sensor readings"
DESCRIPTION = "A daemon that encrypts readings with fully homomorphic encryption under keys that \
               the robot's TPM guards, sends them to a compute server over MQTT, and decrypts \
               the answers."
HOMEPAGE = "https://github.com/moai-agent/moai-agent"
BUGTRACKER = "https://github.com/moai-agent/moai-agent/issues"
SECTION = "net"
# The program's own, and what the crates that are linked into it ask for.
LICENSE = "Apache-2.0 & BSD-3-Clause & BSD-3-Clause-Clear & ISC & MIT & Unicode-3.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

DEPENDS = "tpm2-tss"

PV = "0.1.0+git"
# The repository that this layer is a part of. Where it lies changes nothing in what is built.
# nooelint: oelint.vars.mispell.unknown - the only variable of our own
MOAI_REPOSITORY ?= "${@os.path.realpath('${THISDIR}/../../../..')}"
# nooelint: oelint.vars.mispell.unknown - the only variable of our own
MOAI_REPOSITORY[vardepvalue] = "moai-agent"
# Its current commit, so that recipe, crates and sources always fit one another.
# nooelint: oelint.vars.srcurioptions - usehead implies nobranch
SRC_URI = "git://${MOAI_REPOSITORY};protocol=file;usehead=1"
# nooelint: oelint.vars.autorev - whoever pins the layer pins the commit
SRCREV = "${AUTOREV}"

inherit bash-completion cargo cargo-update-recipe-crates features_check pkgconfig systemd useradd

require ${BPN}-crates.inc

REQUIRED_DISTRO_FEATURES = "systemd"

PACKAGECONFIG ??= "ckks kms pkcs11 tfhe tpm-device"
# TFHE is not made for 32 bits.
# nooelint: oelint.vars.specific - an architecture
PACKAGECONFIG:arm ??= "ckks kms pkcs11 tpm-device"
PACKAGECONFIG[ckks] = "--features ckks"
PACKAGECONFIG[tfhe] = "--features tfhe"
PACKAGECONFIG[kms] = "--features kms"
PACKAGECONFIG[pkcs11] = "--features pkcs11"
# The kernel's /dev/tpmrm0. Without it, another TCTI of libtss2 has to be configured and installed.
PACKAGECONFIG[tpm-device] = ",,,libtss2-tcti-device"

# Nothing there is built, and do_update_crates would list the crates of its own Cargo.lock as well.
do_unpack[postfuncs] += "remove_fuzz_targets"
remove_fuzz_targets() {
    rm -rf "${S}/fuzz"
}

CARGO_BUILD_FLAGS:append = " --package moai-agent --bin moai-agent --no-default-features"
# Symbols go to the -dbg package.
export CARGO_PROFILE_RELEASE_STRIP = "none"

SYSTEMD_SERVICE:${PN} = "moai-agent.service"

USERADD_PACKAGES = "${PN}"
# tpm2-tss has the group tss, too; whichever comes first makes it.
GROUPADD_PARAM:${PN} = "--system tss; --system moai-agent"
USERADD_PARAM:${PN} = "--system --gid moai-agent --groups tss --no-create-home \
                       --home-dir ${localstatedir}/lib/moai-agent --shell /bin/false moai-agent"

do_install() {
    install -D -m 0755 "${B}/target/${CARGO_TARGET_SUBDIR}/moai-agent" "${D}${bindir}/moai-agent"
    install -D -m 0644 "${S}/systemd/agent.toml" "${D}${sysconfdir}/moai-agent/agent.toml"
    install -D -m 0644 "${S}/systemd/moai-agent.service" \
        "${D}${systemd_system_unitdir}/moai-agent.service"
    install -D -m 0644 "${S}/systemd/moai-agent.tmpfiles" \
        "${D}${nonarch_libdir}/tmpfiles.d/moai-agent.conf"
    install -D -m 0644 "${S}/systemd/moai-agent.udev" \
        "${D}${nonarch_base_libdir}/udev/rules.d/60-moai-agent.rules"
    install -d "${D}${mandir}/man1"
    install -m 0644 "${S}/docs/cli/"*.1 "${D}${mandir}/man1/"
    install -D -m 0644 "${S}/docs/cli/moai-agent.bash" \
        "${D}${datadir}/bash-completion/completions/moai-agent"
}

FILES:${PN} += "${nonarch_libdir}/tmpfiles.d ${nonarch_base_libdir}/udev/rules.d"
CONFFILES:${PN} = "${sysconfdir}/moai-agent/agent.toml"
