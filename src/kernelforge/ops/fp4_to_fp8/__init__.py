"""MXFP4 weights as FP8 under coarser scales, exactly."""
