"""Renews what the CKKS server computed: evaluate.py cards | results DIRECTORY.

Run in `server/tenseal` with its environment. `cards` writes the card of each model; then
`cargo run --example ckks_requests DIRECTORY` in `fhe` writes keys and an input for each; then
`results` has the server's engine evaluate them.
"""

import json
import sys
from pathlib import Path

from moai_tenseal import models

directory = Path(sys.argv[2])
known = models.load(Path("models"))
if sys.argv[1] == "cards":
    for name, model in known.items():
        (directory / f"{name}.card.json").write_text(json.dumps(model.card(), indent=1) + "\n")
else:
    from moai_tenseal.engine import Engine

    engine = Engine(known, threads=1)
    for name, model in known.items():
        keys = engine.prepare(model.context, (directory / f"{name}.keys").read_bytes())
        result = keys.evaluate(name, (directory / f"{name}.input").read_bytes())
        (directory / f"{name}.result").write_bytes(result)
        inputs = json.loads((directory / f"{name}.inputs.json").read_text())
        (directory / f"{name}.scores.json").write_text(json.dumps(model.scores(inputs)) + "\n")
