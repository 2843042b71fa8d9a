//! zlib streams (RFC 1950), which SEAL writes when it was built without Zstandard.

use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

use crate::error::FormatError;

/// Decompresses a whole stream of at most `cap` bytes.
pub(crate) fn decompress(stream: &[u8], cap: usize) -> Result<Vec<u8>, FormatError> {
    use miniz_oxide::inflate::TINFLStatus;
    decompress_to_vec_zlib_with_limit(stream, cap).map_err(|error| match error.status {
        TINFLStatus::HasMoreOutput => FormatError::TooLarge,
        _ => FormatError::Compression,
    })
}
