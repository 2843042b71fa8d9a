SUMMARY = "What a robot needs to run moai-agent"
SUMMARY:${PN}-swtpm = "What a virtual robot needs to run moai-agent"
DESCRIPTION = "The agent, tools to look at the TPM, and a broker for onboard software where the \
               layer that has one is there."

inherit packagegroup

PACKAGES = "${PN} ${PN}-swtpm"

RDEPENDS:${PN} = "moai-agent"
RDEPENDS:${PN}-swtpm = "${PN} moai-swtpm"
RRECOMMENDS:${PN} = "tpm2-tools \
                     ${@bb.utils.contains('BBFILE_COLLECTIONS', 'networking-layer', 'mosquitto', '', d)}"
