"""Open-loop load against any OpenAI-compatible URL, and what came of it as users would have felt it."""
