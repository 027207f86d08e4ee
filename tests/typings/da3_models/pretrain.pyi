from models.pretrain import *  # noqa: F403  (the same module by its installed name)
