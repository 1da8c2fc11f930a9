"""Products of BF16 and float32 matrices by exact integer dots (contract C4)."""
