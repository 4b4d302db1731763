"""How much memory operations allocate while they run."""

import weakref

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Largest number of bytes alive at one time in storages made under it."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if hasattr(t, "untyped_storage")}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if hasattr(tensor, "untyped_storage") and tensor.untyped_storage().data_ptr() not in inputs:
                self.count(tensor)
        return result

    def count(self, tensor):
        size = tensor.untyped_storage().nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self.free, size)

    def free(self, size):
        self.now -= size
