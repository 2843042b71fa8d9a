//! Stands for the crate `regex`, of which tss-esapi uses nothing but a few patterns, to split the name
//! of a TPM's interface: 1.1 MB of the program. The same makers' small engine reads these patterns alike.
//!
//! Invariant: nobody else in the agent depends on `regex`; patterns of `\w`, `\d` and case know no
//! Unicode here.

pub use regex_lite::*;
