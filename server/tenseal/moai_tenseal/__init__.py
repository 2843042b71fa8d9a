"""A compute server for CKKS models: TenSEAL behind the uplink protocol.

`docs/protocol.md` is the specification; what is said there is not repeated here.
"""
