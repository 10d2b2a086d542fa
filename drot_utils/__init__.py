"""The package under the notebooks, in rooms; a file imports from its own room or an earlier one.

study     parameters, places, the record of a run, the graph of its stages and who runs them
data      the one table, actions, gold labels, what models write, the paper's numbers
engine    machinery for models: loading, classifying, writing, training, the map over shards
llm       machinery for servers: asking, reading replies, keeping answers, counting costs
method    the paper's section 3 and appendices A, C, D: teacher, critic, NLI filter, student, judges
analysis  sections 4 and 5: evaluation, baselines, topics, toxicity, bias, statistics
people    appendix B: forms, the tools in which they are filled, votes
report    figures, tables, the released data set, the plan of a run

`engine` and `llm` do not import each other, nor do `analysis`, `people` and `report`; notebooks import neither `engine` nor `llm`.
"""

import logging
import os
import sys

# Libraries that are imported later say less: tokenizers of forks, datasets of its progress.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# jsonschema, of papermill, compiles the grammar of web addresses where it finds this one: two seconds of every process, for nothing.
sys.modules.setdefault("rfc3987_syntax", None)
# Each run has a font cache of its own; a notebook need not say that it is being made.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

__version__ = "0.1.0"
