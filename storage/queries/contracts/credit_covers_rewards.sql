-- Exactly the rollouts that have a reward are credited, each once and with that reward.
-- Why: credit for another reward, or for a completion without one, trains on something nobody judged.
-- Do: look at tasks/credit.py.
SELECT rollout_id, v.reward AS verdict, a.reward AS credited
FROM (SELECT rollout_id, reward FROM verdicts WHERE reward IS NOT NULL) v FULL JOIN advantages a USING (rollout_id)
WHERE v.reward IS DISTINCT FROM a.reward
UNION ALL
SELECT rollout_id, NULL, count(*) FROM advantages GROUP BY rollout_id HAVING count(*) > 1
