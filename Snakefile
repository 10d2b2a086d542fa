# The study as a DAG: one rule a notebook run. `drot_utils/study/graph.py` says what follows what; here is how it runs.
#   snakemake --cores 2 --config params_file=params/demo.yaml        (or `make demo`, which also shows the progress)
# A notebook, a module it imports, or a section of the parameters it depends on: when one changes, what depends on it runs again.
# Outputs are executed notebooks only: unfinished shards and checkpoints are no outputs, so a failed job keeps them.
import sys

from drot_utils.study.paths import Run
from drot_utils.study.params import load_params
from drot_utils.study.graph import inputs_of, list_stages, refuse_braces

PARAMS_FILE = config.get("params_file", "params/demo.yaml")
PARAMS_FILE = PARAMS_FILE[0] if isinstance(PARAMS_FILE, list) else str(PARAMS_FILE)
PARAMS = load_params(PARAMS_FILE)
RUN = Run(PARAMS.profile)
refuse_braces(RUN, PARAMS)
STAGES = list_stages(PARAMS, ablations=True if config.get("ablations") else None)
PYTHON = sys.executable
VALUES = PARAMS.model_dump(mode="json")


rule all:
    input:
        [stage.output(RUN) for stage in STAGES],


for stage in STAGES:

    rule:
        name:
            stage.name
        input:
            inputs_of(stage, RUN, PARAMS),
        output:
            stage.output(RUN),
        params:
            # What makes a stage run again: its sections of the parameters, not where they are written down.
            values={section: VALUES[section] for section in stage.sections},
        shell:
            "{PYTHON:q} -m drot_utils stage {rule} {PARAMS_FILE:q}"
