"""The paper's own numbers, to stand beside ours (Rao et al., 2023, tables 1 to 5 and figure 3): ``data/published.yaml``."""

import pandas as pd
import yaml

from drot_utils.study.paths import resolve

#: A prompt's samples, of which #Vld counts the valid ones (section 4.2).
SAMPLES = 10

_NUMBERS = yaml.safe_load(resolve("data/published.yaml").read_text(encoding="utf-8"))

TABLE1, TABLE2, TABLE3, TABLE4, TABLE5 = (
    pd.DataFrame(_NUMBERS[f"table{n}"]["rows"], columns=_NUMBERS[f"table{n}"]["columns"]) for n in range(1, 6)
)
#: Of contexts and rationales, the most frequent topics with their counts.
TOPICS = {kind: list(counts.items()) for kind, counts in _NUMBERS["topics"].items()}
