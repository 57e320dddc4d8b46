-- Every status has one reward, finite or NULL, and what the verifier failed on says how it failed.
-- Why: a verdict that sometimes counts and sometimes does not, or a failure that looks like a verdict, bends every mean.
-- Do: look at tasks/verification.py and at the experiment's verification.rewards.
SELECT rollout_id, status, reward, failure FROM verdicts
WHERE NOT isfinite(reward) OR (failure IS NULL) = (status IN ('timeout', 'out_of_memory', 'crashed'))
   OR status IN (SELECT status FROM verdicts GROUP BY status
                 HAVING count(DISTINCT reward) > 1 OR count(reward) NOT IN (0, count(*)))
