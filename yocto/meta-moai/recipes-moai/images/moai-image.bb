SUMMARY = "A small image with moai-agent, for a board with a TPM 2.0"
DESCRIPTION = "Boots to systemd with the agent installed. The machine's layer brings the kernel \
               with the driver of its TPM."

require moai-image.inc

REQUIRED_MACHINE_FEATURES = "tpm2"
