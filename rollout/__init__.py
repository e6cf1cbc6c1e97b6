"""Problem → prompt → completions: sources, templates, the engine protocol and the engines behind it."""
