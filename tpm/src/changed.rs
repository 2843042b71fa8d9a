//! Which PCRs differ, in words.

use std::fmt;

/// Lists PCRs that changed and what they measure.
pub(crate) struct Changed<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Changed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, rest)) = self.0.split_last() else {
            return f.write_str("which PCR changed cannot be told");
        };
        for index in rest {
            write!(f, "PCR {index}{} and ", Meaning(*index))?;
        }
        write!(f, "PCR {last}{} changed", Meaning(*last))
    }
}

/// What a PCR measures (TCG PC Client Platform Firmware Profile; UAPI PCR registry).
struct Meaning(u8);

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => " (firmware code)",
            1 => " (firmware settings)",
            2 => " (option ROMs)",
            4 => " (boot loader)",
            5 => " (partition table)",
            7 => " (Secure Boot state)",
            8 => " (boot loader commands)",
            9 => " (kernel and initrd)",
            10 => " (IMA)",
            11 => " (unified kernel image)",
            12 => " (kernel command line)",
            14 => " (MOK certificates)",
            _ => "",
        })
    }
}
