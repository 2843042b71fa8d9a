"""Writes the objects of SEAL in seal-4.1 or seal-4.3: seal.py DIRECTORY, under TenSEAL 0.3.16 or
0.3.18. Keys and noise are random, so another run gives other bytes that say the same.

secret-key.bin  SEAL's secret key at degree 4096, primes of 37, 32, 37 bits
seeded.bin      values.txt at scale 2^32 under that key, with a seed for its second polynomial
expanded.bin    the same as SEAL loaded and saved it
galois.bin      the Galois key of element 3, a rotation by 1, all parts seeded
"""

import pathlib
import sys

import tenseal.sealapi as seal

directory = pathlib.Path(sys.argv[1])
directory.mkdir(exist_ok=True)
values = [round(((i * 37) % 101) / 50 - 1, 3) for i in range(24)]
parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
parameters.set_poly_modulus_degree(4096)
parameters.set_coeff_modulus(seal.CoeffModulus.Create(4096, [37, 32, 37]))
context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
generator = seal.KeyGenerator(context)
secret_key = generator.secret_key()
secret_key.save(str(directory / "secret-key.bin"))
plain = seal.Plaintext()
seal.CKKSEncoder(context).encode(values, 2.0**32, plain)
seal.Encryptor(context, secret_key).encrypt_symmetric(plain).save(str(directory / "seeded.bin"))
ciphertext = seal.Ciphertext()
ciphertext.load(context, str(directory / "seeded.bin"))
ciphertext.save(str(directory / "expanded.bin"))
generator.create_galois_keys([3]).save(str(directory / "galois.bin"))
(directory / "values.txt").write_text(" ".join(map(repr, values)) + "\n")
