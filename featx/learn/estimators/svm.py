"""SVC and SVR: libsvm, on kernels computed by matrix products and shared by the candidates of a search."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import sklearn.svm

from featx.learn.estimators.kernel_machine import CONSTRAINTS, KernelMachine


class SVC(KernelMachine, sklearn.svm.SVC):
    """Support vector classifier, one against one::

        min_{w, b}  |w|^2 / 2 + C sum_i s_i max(0, 1 - t_i (phi(x_i) w + b)),    phi(x) phi(a) = K(x, a)

    for each pair of classes, with t_i = 1 or -1. Solved by scikit-learn's libsvm on a kernel matrix computed by matrix
    products. A drop-in for scikit-learn's class, except:

    - A class whose rows all have weight 0 is ignored; `support_` indexes all rows, including those of weight 0.
    - `cache_size` is a minimum; kernel values are kept as far as the budget allows.
    - It falls back to scikit-learn for sparse X, callable and precomputed kernels, `probability` and `verbose` and,
      with a warning, if the kernel matrix would exceed `budget_bytes`. For so many rows,
      ``make_pipeline(Nystroem(n_components=2000), LinearSVC())`` approximates it.

    For probabilities, calibrate: ``CalibratedClassifierCV(SVC(), ensemble=False)``.

    Parameters
    ----------
    C : float, above 0
        Inverse of the regularization strength.
    kernel : "rbf", "linear", "poly", "sigmoid", "precomputed" or callable
    degree : int, default 3, for "poly"
    gamma : "scale", "auto" or float, for "rbf", "poly" and "sigmoid"
        "scale": 1 / (d var(X)); "auto": 1 / d.
    coef0 : float, default 0.0, for "poly" and "sigmoid"
    shrinking, tol, max_iter : as in scikit-learn
    probability : deprecated by scikit-learn
    cache_size : float, default 200
        Minimum memory for kernel values during one fit, in MiB.
    class_weight : dict {label: weight} or "balanced", optional
        Multiplies the C of a class. "balanced": n / (k * number of rows of the class), whatever their weights.
    decision_function_shape : "ovr" or "ovo"
    break_ties : bool, default False
    device : "auto", "cpu" or "cuda"
        Where products and kernels are computed; libsvm always runs on the CPU.
    budget_bytes : int, optional
        Memory for kernel matrices and the rows in float64; by default a quarter of what the process may use.
    verbose, random_state : as in scikit-learn

    Attributes
    ----------
    classes_ : (k,) labels
    class_weight_ : (k,)
    support_ : (s,) int32, rows of X that are support vectors, by class
    support_vectors_ : (s, d), of X's type
    n_support_ : (k,) int32
    dual_coef_ : (k - 1, s)
    intercept_, n_iter_ : (k (k - 1) / 2,)
    coef_ : (k (k - 1) / 2, d), for the linear kernel
    fit_status_ : 0, or 1 if `max_iter` was reached
    shape_fit_ : (n, d)
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import SVC
    >>> SVC().fit([[0.0], [1.0], [4.0], [5.0]], ["ant", "ant", "bee", "bee"]).predict([[3.9]])
    array(['bee'], dtype='<U3')
    """

    _type = 0
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**sklearn.svm.SVC._parameter_constraints, **CONSTRAINTS}

    def __init__(
        self,
        *,
        C: float = 1.0,
        kernel: Any = "rbf",
        degree: int = 3,
        gamma: float | str = "scale",
        coef0: float = 0.0,
        shrinking: bool = True,
        probability: bool | str = "deprecated",
        tol: float = 1e-3,
        cache_size: float = 200,
        class_weight: dict | str | None = None,
        verbose: bool = False,
        max_iter: int = -1,
        decision_function_shape: str = "ovr",
        break_ties: bool = False,
        random_state: Any = None,
        device: str = "auto",
        budget_bytes: int | None = None,
    ) -> None:
        super().__init__(
            C=C,
            kernel=kernel,
            degree=degree,
            gamma=gamma,
            coef0=coef0,
            shrinking=shrinking,
            probability=probability,
            tol=tol,
            cache_size=cache_size,
            class_weight=class_weight,
            verbose=verbose,
            max_iter=max_iter,
            decision_function_shape=decision_function_shape,
            break_ties=break_ties,
            random_state=random_state,
        )
        self.device = device
        self.budget_bytes = budget_bytes

    def _labels_of(self, values: np.ndarray) -> np.ndarray:
        """The class that wins most pairs, as an index into `classes_`; ties go to the first class."""
        k = len(self.classes_)
        votes = np.zeros((len(values), k), np.int32)
        for p, (i, j) in enumerate(zip(*np.triu_indices(k, 1), strict=True)):
            first = values[:, p] > 0
            votes[:, i] += first
            votes[:, j] += ~first
        return votes.argmax(axis=1)


class SVR(KernelMachine, sklearn.svm.SVR):
    """Support vector regression: libsvm on a kernel matrix computed by matrix products::

        min_{w, b}  |w|^2 / 2 + C sum_i s_i max(0, |y_i - phi(x_i) w - b| - epsilon),    phi(x) phi(a) = K(x, a)

    A drop-in for scikit-learn's class, except:

    - `support_` indexes all rows, including those of weight 0.
    - `cache_size` is a minimum; kernel values are kept as far as the budget allows.
    - It falls back to scikit-learn for sparse X, callable and precomputed kernels and `verbose` and, with a warning, if
      the kernel matrix would exceed `budget_bytes`. For so many rows, use ``make_pipeline(Nystroem(n_components=2000),
      Ridge())``, whose loss is the squared error.

    Parameters
    ----------
    kernel, degree, gamma, coef0, shrinking, tol, cache_size, max_iter, verbose, device, budget_bytes : as in `SVC`
    C : float, above 0
        Inverse of the regularization strength.
    epsilon : float, at least 0, default 0.1
        Errors up to epsilon have no loss.

    Attributes
    ----------
    support_ : (s,) int32, rows of X that are support vectors
    support_vectors_ : (s, d), of X's type
    n_support_ : (1,) int32
    dual_coef_ : (1, s)
    intercept_ : (1,)
    n_iter_ : int
    coef_ : (1, d), for the linear kernel
    fit_status_ : 0, or 1 if `max_iter` was reached
    shape_fit_ : (n, d)
    n_features_in_ : int, d
    feature_names_in_ : (d,) str, if X has column names

    Examples
    --------
    >>> from featx.learn import SVR
    >>> SVR(kernel="linear", C=100, epsilon=0.01).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]).predict([[3.0]]).round(1)
    array([7.])
    """

    _type = 3
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**sklearn.svm.SVR._parameter_constraints, **CONSTRAINTS}

    def __init__(
        self,
        *,
        kernel: Any = "rbf",
        degree: int = 3,
        gamma: float | str = "scale",
        coef0: float = 0.0,
        tol: float = 1e-3,
        C: float = 1.0,
        epsilon: float = 0.1,
        shrinking: bool = True,
        cache_size: float = 200,
        verbose: bool = False,
        max_iter: int = -1,
        device: str = "auto",
        budget_bytes: int | None = None,
    ) -> None:
        super().__init__(
            kernel=kernel,
            degree=degree,
            gamma=gamma,
            coef0=coef0,
            tol=tol,
            C=C,
            epsilon=epsilon,
            shrinking=shrinking,
            cache_size=cache_size,
            verbose=verbose,
            max_iter=max_iter,
        )
        self.device = device
        self.budget_bytes = budget_bytes

    def _labels_of(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0]
