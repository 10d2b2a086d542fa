# The study as a DAG: one rule a notebook run. `drot_utils/study/graph.py` says what follows what; here is how it runs.
#   snakemake --cores 2 --config params_file=params/demo.yaml        (or `make demo`, which also shows the progress)
# A target is the record of a stage, and its name holds the hash of all that decides the stage's results (see `stamp_stages`). So
# there is a rule only for what is not there yet, and neither file times nor Snakemake's own records matter.
import sys

from drot_utils.study.graph import list_stages, refuse_braces, stamp_stages
from drot_utils.study.outputs import record_path, settle
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run

PARAMS_FILE = config.get("params_file", "params/demo.yaml")
PARAMS_FILE = PARAMS_FILE[0] if isinstance(PARAMS_FILE, list) else str(PARAMS_FILE)
PARAMS = load_params(PARAMS_FILE)
RUN = Run(PARAMS.profile)
refuse_braces(RUN.root)
STAGES = list_stages(PARAMS, ablations=True if config.get("ablations") else None)
STAMPS = stamp_stages(STAGES, PARAMS)
TARGETS = {stage.name: record_path(RUN, stage.name, STAMPS[stage.name].look) for stage in STAGES}
if workflow.is_main_process:
    settle(RUN, STAGES, STAMPS)
MISSING = {name: target for name, target in TARGETS.items() if not target.exists()}
PYTHON = sys.executable


rule all:
    input:
        MISSING.values(),


for stage in STAGES:
    if stage.name in MISSING:

        rule:
            name:
                stage.name
            input:
                [MISSING[name] for name in stage.needs if name in MISSING],
            output:
                TARGETS[stage.name],
            params:
                look=STAMPS[stage.name].look,
            shell:
                "{PYTHON:q} -m drot_utils stage {rule} {PARAMS_FILE:q} --look {params.look}"
