//! Reading fields from bytes of doubtful origin. Nothing here panics or allocates.

/// What is left to parse. After a `None` nothing of it is worth reading.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A flag of one byte and a field that is all zero where the flag is not set.
    pub(crate) fn optional<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Invalid> {
        match (self.array(), self.array()) {
            (Some([1]), Some(field)) => Ok(Some(field)),
            (Some([0]), Some(field)) if field == [0; N] => Ok(None),
            _ => Err(Invalid),
        }
    }
}

/// A field that nothing of ours writes so.
pub(crate) struct Invalid;
