"""Why a frame is refused: a code a robot can act on, and words for people."""

CODES = frozenset(
    {
        "unknown_session",
        "expired_session",
        "unknown_model",
        "malformed_ciphertext",
        "malformed_frame",
        "identity_mismatch",
        "bad_signature",
        "expired_frame",
        "replayed",
        "number_reused",
        "untrusted_certificate",
        "not_attested",
        "too_large",
        "busy",
        "internal",
    }
)


class Refused(Exception):
    """A refusal of one frame or job."""

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"{code} is no error code of the protocol")
        super().__init__(message)
        self.code = code
        self.message = message
