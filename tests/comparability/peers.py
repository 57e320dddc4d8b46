r"""What lm-eval, verl and math-verify say of the completions.

    python tests/comparability/peers.py --setup FOLDER                once: peers.txt into FOLDER, without dependencies
    python tests/comparability/peers.py FOLDER < completions.jsonl    JSON: {peer: {id: correct?}}

It is a process of its own: math-verify's defaults evaluate what they read, and its timeouts are signals.

Nothing is restated here: filters, stop strings and metric options are read from lm-eval's own task files, and run by
its own classes; verl's rules are loaded by path, since importing verl needs ray. lm-eval's metrics import sacrebleu,
for BLEU: an empty module stands in for it.

* lm-eval: the completion is cut at the task's stop strings first, as its generation would have been.
* verl: gsm8k.py (strict, flexible) and math_reward.py, on the whole completion.
* math-verify: verify(parse("\boxed{gold}"), parse(completion)) with its defaults. The gold answer is boxed, for of
  MATH-500's 500 bare golds it parses 392.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Row = dict[str, Any]
GSM8K = ("gsm8k/gsm8k.yaml", "gsm8k/gsm8k-cot.yaml")
MMLU = "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml"
CHOICE = (
    MMLU,
    "mmlu/flan_cot_fewshot/_mmlu_flan_cot_fewshot_template_yaml",
    "mmlu/flan_n_shot/generative/_mmlu_flan_generative_template_yaml",
    "mmlu/generative/_default_template_yaml",
)
BARE_LETTER = "mmlu/generative/_default_template_yaml"
"""The one whose target is C; that of the others is (C)."""
MEMORY_BYTES = 8 << 30


def setup(folder: Path) -> None:
    """Install the peers' pinned versions into `folder`. Raises CalledProcessError, without a registry for example."""
    requirements = Path(__file__).with_name("peers.txt")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "-r", requirements]
    subprocess.run(command, check=True, capture_output=True, text=True)


def kind(row: Row) -> str:
    """Which of our verifiers judges the row: gsm8k, choice or math."""
    return row["dataset"] if row["dataset"] in ("gsm8k", "math") else "choice"


def stand_ins(options: list[str | None]) -> list[str]:
    """The options' texts for lm-eval, which looks for them in the completion: those not in it can never be found."""
    return [text if text is not None else f"\ue000{i}" for i, text in enumerate(options)]


def lm_eval_task(folder: Path, file: str, target: Callable[[Row], str]) -> dict[str, Callable[[Row], bool]]:
    """Every filter of one of lm-eval's tasks, by its name."""
    import yaml
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters import build_filter_ensemble

    task = yaml.safe_load((folder / "lm_eval/tasks" / file).read_text(encoding="utf-8"))
    (metric,) = task["metric_list"]
    assert metric["metric"] == "exact_match"
    metric_options = {k: v for k, v in metric.items() if k not in ("metric", "aggregation", "higher_is_better")}

    def judge_with(pipeline: dict[str, Any]) -> Callable[[Row], bool]:
        steps = [(s["function"], {k: v for k, v in s.items() if k != "function"}) for s in pipeline["filter"]]
        ensemble = build_filter_ensemble(pipeline["name"], steps)

        def judge(row: Row) -> bool:
            text = row["completion"]
            for stop in task["generation_kwargs"]["until"]:
                text = text.split(stop)[0]
            doc = {"choices": stand_ins(row["options"])} if "options" in row else {}
            instance = Instance("generate_until", doc, (), 0, resps=[text])
            ensemble.apply([instance])
            answer = instance.filtered_resps[pipeline["name"]]
            score = exact_match_hf_evaluate([answer], [target(row)], **metric_options)
            return bool(score["exact_match"])

        return judge

    return {pipeline["name"]: judge_with(pipeline) for pipeline in task["filter_list"]}


def lm_eval_peers(folder: Path) -> dict[str, tuple[str, Callable[[Row], bool]]]:
    sys.modules["sacrebleu"] = ModuleType("sacrebleu")
    peers = {}
    for file in GSM8K:
        name = Path(file).stem
        for filter_name, judge in lm_eval_task(folder, file, lambda row: f"#### {row['gold']}").items():
            peers[f"lm-eval {name} {filter_name}"] = "gsm8k", judge
    for file in CHOICE:
        name = "mmlu/" + str(Path(file).parent.relative_to("mmlu"))
        target = (lambda row: row["gold"]) if file == BARE_LETTER else (lambda row: f"({row['gold']})")
        for filter_name, judge in lm_eval_task(folder, file, target).items():
            peers[f"lm-eval {name} {filter_name}"] = "choice", judge
    return peers


def verl_peers(folder: Path) -> dict[str, tuple[str, Callable[[Row], bool]]]:
    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, folder / f"verl/utils/reward_score/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    gsm8k, math = load("gsm8k"), load("math_reward")
    return {
        "verl gsm8k strict": ("gsm8k", lambda row: gsm8k.compute_score(row["completion"], row["gold"]) == 1),
        "verl gsm8k flexible": (
            "gsm8k",
            lambda row: gsm8k.compute_score(row["completion"], row["gold"], method="flexible") == 1,
        ),
        "verl math_reward": ("math", lambda row: math.compute_score(row["completion"], row["gold"]) == 1),
    }


def math_verify(row: Row) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{row['gold']}}}"), parse(row["completion"])))


def main() -> None:
    if sys.argv[1] == "--setup":
        return setup(Path(sys.argv[2]))
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    results, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - verl prints; open until the end
    rows = [json.loads(line) for line in sys.stdin]
    peers = lm_eval_peers(folder) | verl_peers(folder) | {"math-verify": ("math", math_verify)}
    verdicts = {name: {row["id"]: judge(row) for row in rows if kind(row) == of} for name, (of, judge) in peers.items()}
    json.dump(verdicts, results)
    return None


if __name__ == "__main__":
    main()
