-- Every prompt has at least one token.
-- Why: a policy cannot go on from nothing; its completions would have no prompt to be judged by.
-- Do: look at these rows of the dataset and at the chat template.
SELECT prompt_id, prompt_text FROM prompts WHERE len(prompt_token_ids) = 0
