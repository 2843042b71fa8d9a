SUMMARY = "A small image with moai-agent and a software TPM, for QEMU"
DESCRIPTION = "The same as moai-image with swtpm at /dev/tpmrm0, to try things in a virtual \
               machine. What it seals is protected by nothing."

require moai-image.inc

REQUIRED_MACHINE_FEATURES = "vtpm"

IMAGE_INSTALL += "packagegroup-moai-swtpm"
