-- The reward is NULL exactly where the verifier failed (timeout, out_of_memory, crashed), and finite elsewhere.
-- Why: a failure of the verifier must never count as a wrong answer, and a judged completion must not get lost.
-- Do: look at the verifier's rewards (tasks/core/verdict.py).
SELECT rollout_id, status, reward FROM verdicts
WHERE (reward IS NULL) <> (status IN ('timeout', 'out_of_memory', 'crashed')) OR NOT isfinite(reward)
