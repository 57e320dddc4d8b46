-- Branch tokens per completion, tokens with credit of their own, and groups without signal, step by step.
SELECT step, branch_tokens, td_tokens, num_groups, num_groups_without_signal
FROM branch_statistics WHERE run = $run ORDER BY step;
