-- No prompt of a benchmark has the same words as a training prompt.
-- Why: a policy that was trained on a benchmark's prompts is not measured by it.
-- Do: take another split or another benchmark, or say that it is meant: --set contracts.allow_benchmark_prompts=true
SELECT benchmark_prompt_id, prompt_id, prompt_text FROM shared_prompts
WHERE kind = 'exact' AND NOT $allow_benchmark_prompts
