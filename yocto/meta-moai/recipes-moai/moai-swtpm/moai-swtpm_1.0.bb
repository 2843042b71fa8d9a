SUMMARY = "A software TPM at /dev/tpmrm0, for virtual machines"
DESCRIPTION = "Starts swtpm behind the kernel's TPM proxy, so that programs find what they would \
               find on a board with a TPM. Its state is a file: it protects nothing."
HOMEPAGE = "https://github.com/moai-agent/moai-agent"
BUGTRACKER = "https://github.com/moai-agent/moai-agent/issues"
SECTION = "tpm"
LICENSE = "Apache-2.0"
# nooelint: oelint.var.licenseremotefile - a unit of our own, under the licence of the project
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"
CVE_PRODUCT = ""

SRC_URI = "file://moai-swtpm.service"

S = "${UNPACKDIR}"

inherit allarch features_check systemd

REQUIRED_DISTRO_FEATURES = "systemd"

SYSTEMD_SERVICE:${PN} = "moai-swtpm.service"

do_install() {
    install -D -m 0644 "${UNPACKDIR}/moai-swtpm.service" \
        "${D}${systemd_system_unitdir}/moai-swtpm.service"
}

RDEPENDS:${PN} = "swtpm"
