-- At most contracts.max_null_verdicts of the verdicts have no reward.
-- Why: completions that break the verifier are not like the others: leaving many of them out biases every mean.
-- Do: mend the verifier and raise its version, or accept it with --set contracts.max_null_verdicts=SHARE
SELECT rollout_id, verifier, status FROM verdicts
WHERE reward IS NULL AND (SELECT avg((reward IS NULL)::INTEGER) FROM verdicts) > $max_null_verdicts
