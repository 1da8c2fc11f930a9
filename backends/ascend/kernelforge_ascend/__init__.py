"""Huawei Ascend 950 backend of kernelforge."""
