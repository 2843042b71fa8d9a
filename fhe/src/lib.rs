//! fhe
