class ModelMissing(RuntimeError):
    pass
