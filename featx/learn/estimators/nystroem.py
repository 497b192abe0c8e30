"""`Nystroem`: features whose inner products approximate a kernel, so that a linear model is a kernel machine."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Self

import numpy as np
import sklearn.kernel_approximation
from scipy.sparse import issparse
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.learn._sklearn import StrOptions, fit_context
from featx.learn.lazy_rows import LazyRows, checked

_DTYPES = [np.float64, np.float32, np.float16]
_KERNELS = {"linear", "poly", "polynomial", "rbf", "sigmoid"}


class Nystroem(sklearn.kernel_approximation.Nystroem):
    """Nyström approximation of a kernel by m random rows Z, the landmarks::

        phi(x) = k(x, Z) k(Z, Z)^(-1/2),    phi(x) phi(a) ~ k(x, a)

    ``Nystroem -> LinearSVC`` approximates `SVC` where its kernel matrix is too large; phi takes 2 n m (d + m)
    operations. A drop-in for scikit-learn's class, with the same landmarks for the same `random_state`, except:

    - Kernels are computed by matrix products, in blocks of bounded memory; only the landmarks are copied from a memory
      map. float16 is computed in float32.
    - Eigenvalues of k(Z, Z) are raised to at least 1e-12 and to the rounding error of X's type relative to the largest
      one; scikit-learn raises singular values to 1e-12.
    - It falls back to scikit-learn for sparse X and for other kernels than "rbf", "linear", "poly", "polynomial" and
      "sigmoid"; its kernel values are all in memory then.

    Parameters
    ----------
    kernel : "rbf", "linear", "poly", "polynomial", "sigmoid", another kernel of scikit-learn's, or callable
    gamma : float, optional, for "rbf", "poly" and "sigmoid"
        By default 1 / d: `SVC`'s "scale" if columns are standardised.
    coef0 : float, optional, for "poly" and "sigmoid"
        By default 1; `SVC`'s is 0.
    degree : float, optional, for "poly"
        By default 3.
    kernel_params : dict, optional
        Parameters of a callable.
    n_components : int, default 100
        Number of landmarks m; at most n, with a warning.
    random_state : int, RandomState or None
        Chooses the landmarks.
    n_jobs : int, optional
        Processes of scikit-learn's kernels; no effect on the others.
    device : "auto", "cpu" or "cuda"
        Where kernels are computed.

    Attributes
    ----------
    components_ : (m, d), the landmarks
    component_indices_ : (m,) int64, their positions in X
    normalization_ : (m, m), k(Z, Z)^(-1/2)
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    References
    ----------
    Williams, C.K.I. and Seeger, M., "Using the Nyström method to speed up kernel machines", NeurIPS 2001.

    Examples
    --------
    >>> import numpy as np
    >>> from featx.learn import Nystroem
    >>> X = np.array([[0.0], [1.0], [2.0]])
    >>> phi = Nystroem(n_components=3, random_state=0).fit_transform(X)
    >>> (phi @ phi[0]).round(4)  # exp(-(x - 0)^2)
    array([1.    , 0.3679, 0.0183])
    """

    reads_blocks: ClassVar[bool] = True  # of LazyRows
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **sklearn.kernel_approximation.Nystroem._parameter_constraints,
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    def __init__(
        self,
        kernel: Any = "rbf",
        *,
        gamma: float | None = None,
        coef0: float | None = None,
        degree: float | None = None,
        kernel_params: dict | None = None,
        n_components: int = 100,
        random_state: Any = None,
        n_jobs: int | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(
            kernel=kernel,
            gamma=gamma,
            coef0=coef0,
            degree=degree,
            kernel_params=kernel_params,
            n_components=n_components,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Choose the landmarks, and compute the inverse root of their kernel.

        Parameters
        ----------
        X : (n, d) float32, float64 or float16; others become float64
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X cannot be used, or the kernel of the landmarks has NaN or inf.

        Warns
        -----
        UserWarning
            There are fewer rows than `n_components`.
        """
        if self._needs_fallback(X):
            return super().fit(X, y)
        import torch

        from featx.learn.estimators.kernels import Rows
        from featx.solvers import device_of, eigenvectors, full_precision

        X = checked(self, X, dtype=_DTYPES, order="C")
        m = min(len(X), self.n_components)
        if m < self.n_components:
            warnings.warn(
                f"n_components={self.n_components} > n_samples={len(X)}: all rows are landmarks",
                UserWarning,
                stacklevel=3,
            )
        self.component_indices_ = check_random_state(self.random_state).permutation(len(X))[:m]
        self.components_ = np.array(X[self.component_indices_], dtype=np.promote_types(X.dtype, np.float32))
        kernel = self._products_kernel()
        Z = torch.from_numpy(self.components_.copy()).to(device_of(self.device))
        K = kernel.apply_(Rows(Z, kernel.squared).among(slice(0, m), slice(0, m)))  # (m, m)
        if not K.isfinite().all():
            raise ValueError("the kernel of the landmarks has NaN or inf; scale the columns, or choose a smaller gamma")
        eigenvalues, Q = eigenvectors((K + K.T) / 2)
        sizes = eigenvalues.abs()
        least = max(1e-12, float(sizes.max()) * float(np.finfo(self.components_.dtype).eps))
        # of an indefinite kernel, sigmoid's for example, as in scikit-learn: Q sign(l) |l|^(-1/2) Q'
        roots = eigenvalues.sign() / sizes.clamp(min=least).sqrt()
        with full_precision():
            self.normalization_ = ((Q * roots) @ Q.T).cpu().numpy()
        self._n_features_out = m
        return self

    def transform(self, X: Any) -> Any:
        """The features phi.

        Parameters
        ----------
        X : (n, d)

        Returns
        -------
        (n, m) float32 if X and the landmarks are, else float64; of LazyRows, LazyRows, whose blocks are computed when
        they are read
        """
        check_is_fitted(self)
        if self._needs_fallback(X) or issparse(self.components_):
            return super().transform(X)
        if isinstance(X, LazyRows):
            dtype = np.promote_types(X.dtype, self.components_.dtype)
            return X.map(self.transform, len(self.components_), dtype)
        import torch

        from featx.learn.estimators.kernels import Rows
        from featx.solvers import device_of, full_precision, product, threads_for

        X = validate_data(self, X, dtype=_DTYPES, order="C", reset=False)
        kernel, dtype = self._products_kernel(), np.promote_types(X.dtype, self.components_.dtype)
        device = device_of(self.device)
        rows = Rows(torch.from_numpy(self.components_.astype(dtype)).to(device), kernel.squared)
        inverse_root = torch.from_numpy(self.normalization_.astype(dtype)).to(device)
        phi = np.empty((len(X), len(self.components_)), dtype)
        for part, block in rows.between(X):
            block = kernel.apply_(block)  # (rows of the block, m)
            with full_precision(), threads_for(2 * block.numel() * len(inverse_root)):
                phi[part] = product(block, inverse_root).cpu().numpy()
        return phi

    def _needs_fallback(self, X: Any) -> bool:
        """Whether only scikit-learn computes the kernel."""
        return issparse(X) or callable(self.kernel) or self.kernel not in _KERNELS

    def _products_kernel(self) -> Any:
        from featx.learn.estimators.kernels import Kernel

        own = {name: getattr(self, name) for name in ("gamma", "coef0", "degree")}
        params = {"gamma": None, "coef0": 1.0, "degree": 3.0, **(self.kernel_params or {})}
        params |= {name: value for name, value in own.items() if value is not None}
        gamma = 1 / self.n_features_in_ if params["gamma"] is None else float(params["gamma"])
        name = "poly" if self.kernel == "polynomial" else self.kernel
        return Kernel(name, gamma, float(params["coef0"]), params["degree"])
