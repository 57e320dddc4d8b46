-- Where the time of a run's generations went, by sampler: seconds, and the share of what is neither sampling nor weights.
SELECT sampler, purpose, count(*) AS generations, sum(num_completions) AS completions, sum(num_tokens) AS tokens,
       sum(num_tokens) / sum(sampling_seconds) AS tokens_per_second, sum(sampling_seconds) AS sampling,
       sum(sync_seconds) AS weights, sum(read_seconds) AS reading, sum(text_seconds) AS text,
       sum(write_seconds) AS writing,
       sum(read_seconds + text_seconds + write_seconds) / sum(sampling_seconds) AS overhead,
       sum(num_cached_prompt_tokens) / sum(num_prompt_tokens) AS prefix_cache_hits, sum(num_restarts) AS restarts
FROM generations WHERE run = $run GROUP BY ALL ORDER BY ALL;
