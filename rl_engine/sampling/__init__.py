"""Problems → prompts → graded groups, and the updated adapter → the sampler that serves it."""
