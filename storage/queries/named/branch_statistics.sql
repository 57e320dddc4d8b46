-- Branch tokens per completion, how early groups part, what td moves, and groups without signal, step by step.
SELECT step, purpose, label, estimator, branch_tokens, td_tokens, divergence, td_share, num_groups, num_groups_without_signal
FROM branch_statistics WHERE run = $run ORDER BY step, purpose DESC, label, estimator;
