"""The second half of the way loads and runs with torch blocked."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_second_half_needs_neither_torch_nor_transformers(results, blocked):
    code = f"""
from llava_lens import store
from llava_lens.analysis import answers, causal, grounding, presence, report
from llava_lens.figures import all_images
results = store.Results({str(results)!r})
tables = answers.tabulate(results.records(), results.run)
all_images.plot_settling(tables["answers"], results.run)
grounded = grounding.grounding(results.records(), results.run)
confident = presence.category_confidence(results.records())
cut = causal.knockouts(results.records(), results.run)
print(report.report(results.run, tables, grounded, confident, cut, results.mean_probability()))
"""
    environment = {**os.environ, "PYTHONPATH": str(blocked), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "3 images" in done.stdout, done.stderr
