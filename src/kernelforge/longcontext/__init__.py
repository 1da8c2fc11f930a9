"""What long contexts cost per token: cache and arithmetic of DeepSeek-V4's attention beside DeepSeek-V3.2's."""
