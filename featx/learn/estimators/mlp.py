"""scikit-learn's multilayer perceptrons on the solvers: heads for features, trained by minibatches."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GroupShuffleSplit, train_test_split
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.errors import FeatxError, warn
from featx.learn._sklearn import Interval, StrOptions, check_sample_weight, fit_context
from featx.learn.estimators.batched import Fitted, Job
from featx.learn.estimators.neighbors import dense

if TYPE_CHECKING:
    from featx.solvers import MLPProblem, MLPRun, Outcome, TrainedMLP

_THEIRS = SklearnMLPClassifier._parameter_constraints
_ABSENT = ("max_fun", "verbose", "warm_start")
# What networks must have in common to see the same rows in the same order.
_COMMON = (
    "hidden_layer_sizes",
    "activation",
    "batch_size",
    "shuffle",
    "early_stopping",
    "validation_fraction",
    "random_state",
    "device",
    "precision",
)


class _MLP(BaseEstimator):
    """Base of both estimators: `fit`, alone or many at once, and the outputs of a fitted network."""

    classes_: np.ndarray
    out_activation_: str
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: constraints for name, constraints in _THEIRS.items() if name not in _ABSENT},
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "precision": [StrOptions({"bfloat16"}), None],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
    }

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : (n, d) float32 or float64; others become float64
        y : (n,) or (n, t)
            Labels, or several labels per row as a matrix of 0 and 1; for MLPRegressor, numbers.
        sample_weight : (n,) or float, at least 0, optional
            Rows of weight 0 are ignored.
        groups : (n,), optional
            With early_stopping, rows of one group are never split between training and validation.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            X or y is invalid, or the loss is not finite. The error is a FeatxError if scikit-learn's class supports the
            input.

        Warns
        -----
        ConvergenceWarning
            `max_iter` was reached.
        """
        from featx.solvers import train_mlps

        self._refuse()
        X, y = validate_data(self, dense(self, X), y, dtype=[np.float64, np.float32], order="C", **self._y_options())
        own = X if X.flags.writeable else X.copy()  # torch warns of read-only arrays
        run = self._run(lambda: own, X, self._encoded(y), sample_weight, groups)
        run.problems.append(self._problem())
        low_precision = self.precision is not None
        (trained,) = train_mlps([run], device=self.device, low_precision=low_precision)
        self._keep(trained[0][0], run)
        _warn(type(self), [trained[0][0].outcome])
        return self

    @classmethod
    def fit_each(cls, X: Any, y: Any, jobs: Sequence[Job]) -> Iterator[Fitted]:
        """As in `Batched`: jobs of a fold with one architecture and the same integer `random_state` are one run."""
        from featx.learn.estimators.kernels import rows_of
        from featx.solvers import train_mlps

        began = perf_counter()
        original, X = X, check_array(dense(cls(), X), dtype=[np.float64, np.float32], order="C")
        y = np.asarray(y)
        runs: dict[Any, MLPRun] = {}
        numbers: dict[Any, list[int]] = {}
        for number, (estimator, fold) in enumerate(jobs):
            try:
                estimator._validate_params()
                estimator._refuse()
                validate_data(estimator, original, skip_check_array=True)  # sets number and names of columns
                targets = estimator._encoded(y[fold.train])
                own = None if isinstance(estimator.random_state, Integral) else number
                key = fold.number, own, *(repr(getattr(estimator, name)) for name in _COMMON)
                if key not in runs:
                    rows = partial(rows_of, X, fold.train, fold)
                    runs[key] = estimator._run(rows, X[:0], targets, fold.sample_weight, None)
                runs[key].problems.append(estimator._problem())
                numbers.setdefault(key, []).append(number)
            except Exception as error:
                yield Fitted(number, error, 0.0)
        settings: dict[tuple[str, bool], list[Any]] = {}
        for key, (first, *_) in numbers.items():
            estimator = jobs[first].estimator
            settings.setdefault((estimator.device, estimator.precision is not None), []).append(key)
        outcomes = []
        for (device, low_precision), keys in settings.items():
            for trained in train_mlps([runs[key] for key in keys], device=device, low_precision=low_precision):
                share = (perf_counter() - began) / sum(map(len, trained.values()))
                for position, of_run in trained.items():
                    for number, network in zip(numbers[keys[position]], of_run, strict=True):
                        fitted = jobs[number].estimator
                        try:
                            fitted._keep(network, runs[keys[position]])
                            outcomes.append(network.outcome)
                        except ValueError as error:
                            fitted = error
                        yield Fitted(number, fitted, share)
                began = perf_counter()
        _warn(cls, outcomes)

    def _refuse(self) -> None:
        """Raise FeatxError if a parameter has a value that only scikit-learn's class supports."""
        for name, absent, only in (("solver", "lbfgs", "'adam' and 'sgd'"), ("loss", "poisson", "'squared_error'")):
            if getattr(self, name, None) == absent:
                raise FeatxError(
                    f"{type(self).__name__} has no {name}={absent!r}, only {only}; "
                    f"sklearn.neural_network.{type(self).__name__} has it"
                )

    def _y_options(self) -> dict[str, bool]:
        return {"multi_output": True, "y_numeric": not is_classifier(self)}

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        """(n, q) targets of the network; sets `classes_` and `out_activation_`."""
        raise NotImplementedError

    def _score(self, targets: np.ndarray, outputs: np.ndarray, weights: np.ndarray | None) -> float:
        """Score of held-out rows, for early stopping."""
        raise NotImplementedError

    def _run(
        self, rows: Callable[[], np.ndarray], X: np.ndarray, targets: np.ndarray, sample_weight: Any, groups: Any
    ) -> MLPRun:
        """The network at its initial coefficients, and its rows; random numbers are drawn as scikit-learn draws them.

        X : (any, d), of which only the type is used
        """
        from featx.solvers import MLPRun

        sizes = [int(size) for size in np.ravel(self.hidden_layer_sizes)]
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        weights = None
        if sample_weight is not None:
            weights = check_sample_weight(sample_weight, targets, dtype=X.dtype, ensure_non_negative=True)
        positions = np.arange(len(targets)) if weights is None else np.flatnonzero(weights)
        random_state = check_random_state(self.random_state)
        units = [X.shape[1], *sizes, targets.shape[1]]
        before = deepcopy(random_state)  # coefficients are drawn now, for what follows, and again when their turn comes
        self._start(random_state, units, X.dtype)
        train, held_out = positions, None
        if self.early_stopping:
            train, held_out = self._split(positions, targets, groups, random_state)
        batch_size = min(200, len(train)) if self.batch_size == "auto" else self.batch_size
        if batch_size > len(train):
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
            )
            batch_size = len(train)
        of_held_out = slice(0) if held_out is None else held_out
        unfitted = copy(self)  # a run outlives the use of its first network, which may be large
        score = partial(
            unfitted._scored, targets=targets[of_held_out], weights=None if weights is None else weights[of_held_out]
        )
        return MLPRun(
            rows=rows,
            targets=targets,
            weights=weights,
            train=train,
            held_out=held_out,
            score=score,
            units=units,
            start=lambda: unfitted._start(deepcopy(before), units, X.dtype),
            activation=self.activation,
            output=self.out_activation_,
            batch_size=batch_size,
            random_state=random_state if self.shuffle else None,
            dropout_seed=deepcopy(random_state).randint(2**31 - 1),
        )

    def _start(
        self, random_state: np.random.RandomState, units: Sequence[int], dtype: np.dtype
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Initial coefficients and intercepts: uniform, with the bounds of Glorot and Bengio (2010)."""
        coefs, intercepts = [], []
        for n_in, n_out in pairwise(units):
            bound = np.sqrt((2 if self.activation == "logistic" else 6) / (n_in + n_out))
            coefs.append(random_state.uniform(-bound, bound, (n_in, n_out)).astype(dtype))
            intercepts.append(random_state.uniform(-bound, bound, n_out).astype(dtype))
        return coefs, intercepts

    def _split(
        self, positions: np.ndarray, targets: np.ndarray, groups: Any, random_state: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions to train on, and those to hold out: whole groups, or rows as scikit-learn draws them."""
        if groups is not None:
            check_consistent_length(targets, groups)
            splitter = GroupShuffleSplit(1, test_size=self.validation_fraction, random_state=random_state)
            of_groups = column_or_1d(groups)[positions]
            train, held_out = next(splitter.split(positions, groups=of_groups))
            train, held_out = positions[train], positions[held_out]
        else:
            is_binary = is_classifier(self) and targets.shape[1] == 1
            train, held_out = train_test_split(
                positions,
                test_size=self.validation_fraction,
                random_state=random_state,
                stratify=targets[positions] if is_binary else None,
            )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return train, held_out

    def _scored(self, outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> float:
        return self._score(targets, outputs, weights) if np.isfinite(outputs).all() else np.nan

    def _problem(self) -> MLPProblem:
        from featx.solvers import MLPProblem

        is_sgd = self.solver == "sgd"
        return MLPProblem(
            alpha=self.alpha,
            learning_rate_init=self.learning_rate_init,
            max_iter=self.max_iter,
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
            dropout=self.dropout,
            betas=(self.beta_1, self.beta_2),
            epsilon=self.epsilon,
            momentum=self.momentum if is_sgd else None,
            nesterov=self.nesterovs_momentum,
            schedule=self.learning_rate if is_sgd else "constant",
            power_t=self.power_t,
        )

    def _keep(self, trained: TrainedMLP, run: MLPRun) -> None:
        """Set the attributes of a fitted estimator."""
        if not all(np.isfinite(array).all() for array in trained.coefs + trained.intercepts):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed, or learning_rate_init={self.learning_rate_init:g} is too large."
            )
        self.coefs_, self.intercepts_ = trained.coefs, trained.intercepts
        self.loss_curve_, self.loss_, self.best_loss_ = trained.losses, trained.losses[-1], trained.best_loss
        self.validation_scores_, self.best_validation_score_ = trained.scores, trained.best_score
        self.n_iter_ = len(trained.losses)
        self.t_ = self.n_iter_ * len(run.train)
        self.n_layers_, self.n_outputs_ = len(trained.coefs) + 1, run.targets.shape[1]

    def _outputs(self, X: Any) -> np.ndarray:
        """(m, q) outputs of the network for rows (m, d)."""
        check_is_fitted(self)
        values = validate_data(self, dense(self, X), reset=False)
        for coef, intercept in zip(self.coefs_[:-1], self.intercepts_[:-1], strict=True):
            values = _ACTIVATIONS[self.activation](values @ coef + intercept)
        return _ACTIVATIONS[self.out_activation_](values @ self.coefs_[-1] + self.intercepts_[-1])


class MLPClassifier(ClassifierMixin, _MLP):
    """Multilayer perceptron for classification, trained by minibatches; without hidden layers, a softmax regression::

        min_{W, b}  (sum_i s_i l(z_i, y_i) + alpha/2 sum_j |W_j|^2) / sum_i s_i,    l the cross-entropy

    over the rows of each minibatch. In float64 and without dropout, the losses equal those of scikit-learn's class.
    What differs:

    - No solver="lbfgs", `warm_start`, `partial_fit` or `verbose`; X must be dense.
    - A KeyboardInterrupt is raised, and leaves the estimator unfitted.
    - There are `dropout`, `precision` and `device`; `fit` takes `groups`.
    - Rows of weight 0 are left out before minibatches are made; weights must not be negative.
    - Training stops as soon as the loss is not finite.
    - A search trains candidates of a fold together, with common minibatches and one product with all first layers, if
      they have the same hidden_layer_sizes, activation, batch_size, shuffle, early_stopping, validation_fraction,
      precision and integer random_state. Each result equals that of a separate fit, up to rounding.
    - A search that passes `groups` to `fit` falls back to scikit-learn's, which is slower.

    Notes
    -----
    It rarely pays on features of a pretrained network: tuned logistic regression was as accurate in a twentieth of the
    time (`benchmarks/heads.py`), and a search takes not much less CPU time than with scikit-learn's class. Use it to
    reproduce published heads, `MLPClassifier((1024,), dropout=0.5)` or
    `MLPClassifier((), solver="sgd", nesterovs_momentum=False)`; for features that are far from linearly separable, such
    as those of early layers; and for several labels per row.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Units of each hidden layer; () for a linear model.
    activation : "relu", "tanh", "logistic" or "identity"
    solver : "adam" or "sgd"
    alpha : float, default 1e-4
        Strength of the L2 penalty.
    batch_size : int or "auto"
        Rows of a minibatch; "auto" is min(200, n).
    learning_rate : "constant", "invscaling" or "adaptive"
        Schedule of "sgd".
    learning_rate_init, power_t, momentum, nesterovs_momentum, beta_1, beta_2, epsilon : as in scikit-learn
    max_iter : int, default 200
        Maximum number of epochs.
    shuffle : bool, default True
    random_state : int, RandomState, optional
        Draws the initial coefficients, the validation rows and the order of the rows, all as scikit-learn does, and the
        units that are dropped out.
    tol, n_iter_no_change : as in scikit-learn
        Training stops after n_iter_no_change epochs in which the loss, or the validation score, improved by less than
        tol.
    early_stopping : bool, default False
        Whether to hold out rows, stop by their score, and keep the coefficients of the best one. Rows of one group are
        held out together if `fit` gets `groups` (`fit(X, y, groups=...)`; in a pipeline,
        `mlpclassifier__groups=...`).
    validation_fraction : float, default 0.1
        Share of the rows, or of the groups, that is held out.
    dropout : float, default 0
        Share of the hidden units that are set to 0 in training, drawn for each row.
    precision : "bfloat16", optional
        Type in which hidden layers are multiplied, by default that of X. On a processor with bfloat16 instructions,
        bfloat16 took three quarters of the time for a wide layer.
    device : "auto", "cpu" or "cuda"

    Attributes
    ----------
    classes_ : (k,) labels
    coefs_, intercepts_ : lists of (d_in, d_out) and (d_out,) arrays of X's type
    loss_, loss_curve_, best_loss_ : the last epoch's loss, all of them, and the smallest (None with early_stopping)
    validation_scores_, best_validation_score_ : accuracy of each epoch, and the best; None without early_stopping
    n_iter_, t_ : epochs, and rows seen
    n_layers_, n_outputs_, out_activation_ : as in scikit-learn
    n_features_in_, feature_names_in_ : as in scikit-learn

    Examples
    --------
    >>> from featx.learn import MLPClassifier
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], ["ant", "ant", "bee", "bee"]
    >>> MLPClassifier((8,), learning_rate_init=0.05, random_state=0).fit(X, y).predict([[5.0]])
    array(['bee'], dtype='<U3')
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        dropout: float = 0.0,
        precision: str | None = None,
        device: str = "auto",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.dropout = dropout
        self.precision = precision
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """The label of the largest output; for several labels per row, those of probability above 0.5.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m,) labels, or (m, k) of 0 and 1 if y had several labels per row
        """
        return self._labels(self._outputs(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m, k), columns as `classes_`
        """
        outputs = self._outputs(X)
        return np.column_stack([1 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m, k), columns as `classes_`
        """
        return np.log(self.predict_proba(X))

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_
        self.out_activation_ = "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"
        return self._label_binarizer.transform(y).astype(bool)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        return self._label_binarizer.inverse_transform(outputs.ravel() if outputs.shape[1] == 1 else outputs)

    def _score(self, targets: np.ndarray, outputs: np.ndarray, weights: np.ndarray | None) -> float:
        return accuracy_score(self._labels(targets), self._labels(outputs), sample_weight=weights)


class MLPRegressor(MultiOutputMixin, RegressorMixin, _MLP):
    """Multilayer perceptron for regression, trained by minibatches, for one target or several::

        min_{W, b}  (sum_i s_i |z_i - y_i|^2 / 2 + alpha/2 sum_j |W_j|^2) / sum_i s_i

    over the rows of each minibatch. In float64 and without dropout, the losses equal those of scikit-learn's class.
    What differs:

    - No solver="lbfgs", loss="poisson", `warm_start`, `partial_fit` or `verbose`; X must be dense.
    - A KeyboardInterrupt is raised, and leaves the estimator unfitted.
    - There are `dropout`, `precision` and `device`; `fit` takes `groups`.
    - Rows of weight 0 are left out before minibatches are made; weights must not be negative.
    - Training stops as soon as the loss is not finite.
    - A search trains candidates of a fold together, with common minibatches and one product with all first layers, if
      they have the same hidden_layer_sizes, activation, batch_size, shuffle, early_stopping, validation_fraction,
      precision and integer random_state. Each result equals that of a separate fit, up to rounding.
    - A search that passes `groups` to `fit` falls back to scikit-learn's, which is slower.

    Notes
    -----
    It rarely pays on features of a pretrained network: tuned Ridge is solved in closed form, and SVR is nonlinear too.
    Targets are best standardised (`sklearn.compose.TransformedTargetRegressor`), since their scale determines which
    `learning_rate_init` works.

    Parameters
    ----------
    loss : "squared_error"
    hidden_layer_sizes : int or sequence of int, default (100,)
        Units of each hidden layer; () for a linear model.
    activation : "relu", "tanh", "logistic" or "identity"
    solver : "adam" or "sgd"
    alpha : float, default 1e-4
        Strength of the L2 penalty.
    batch_size : int or "auto"
        Rows of a minibatch; "auto" is min(200, n).
    learning_rate : "constant", "invscaling" or "adaptive"
        Schedule of "sgd".
    learning_rate_init, power_t, momentum, nesterovs_momentum, beta_1, beta_2, epsilon : as in scikit-learn
    max_iter : int, default 200
        Maximum number of epochs.
    shuffle : bool, default True
    random_state : int, RandomState, optional
        Draws the initial coefficients, the validation rows and the order of the rows, all as scikit-learn does, and the
        units that are dropped out.
    tol, n_iter_no_change : as in scikit-learn
        Training stops after n_iter_no_change epochs in which the loss, or the validation score, improved by less than
        tol.
    early_stopping : bool, default False
        Whether to hold out rows, stop by their score, and keep the coefficients of the best one. Rows of one group are
        held out together if `fit` gets `groups` (`fit(X, y, groups=...)`; in a pipeline,
        `mlpregressor__groups=...`).
    validation_fraction : float, default 0.1
        Share of the rows, or of the groups, that is held out.
    dropout : float, default 0
        Share of the hidden units that are set to 0 in training, drawn for each row.
    precision : "bfloat16", optional
        Type in which hidden layers are multiplied, by default that of X. On a processor with bfloat16 instructions,
        bfloat16 took three quarters of the time for a wide layer.
    device : "auto", "cpu" or "cuda"

    Attributes
    ----------
    coefs_, intercepts_ : lists of (d_in, d_out) and (d_out,) arrays of X's type
    loss_, loss_curve_, best_loss_ : the last epoch's loss, all of them, and the smallest (None with early_stopping)
    validation_scores_, best_validation_score_ : R^2 of each epoch, and the best; None without early_stopping
    n_iter_, t_ : epochs, and rows seen
    n_layers_, n_outputs_, out_activation_ : as in scikit-learn
    n_features_in_, feature_names_in_ : as in scikit-learn

    Examples
    --------
    >>> from featx.learn import MLPRegressor
    >>> X, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]
    >>> line = MLPRegressor(hidden_layer_sizes=(), solver="sgd", momentum=0.0, learning_rate_init=0.2, alpha=0.0)
    >>> line.set_params(tol=1e-9, random_state=0).fit(X, y).predict([[3.0]]).round(2)
    array([3.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_MLP._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"})],
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        dropout: float = 0.0,
        precision: str | None = None,
        device: str = "auto",
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.dropout = dropout
        self.precision = precision
        self.device = device

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets.

        Parameters
        ----------
        X : (m, d)

        Returns
        -------
        (m,) or (m, t)
        """
        outputs = self._outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        self.out_activation_ = "identity"
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = check_array(y, dtype=np.float64, ensure_2d=False, copy=True, input_name="y")
        return y.reshape(len(y), -1)

    def _score(self, targets: np.ndarray, outputs: np.ndarray, weights: np.ndarray | None) -> float:
        return r2_score(targets, outputs, sample_weight=weights)


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": partial(np.maximum, 0),
    "tanh": np.tanh,
    "logistic": expit,
    "identity": lambda values: values,
    "softmax": partial(softmax, axis=1),
}


def _warn(cls: type[_MLP], outcomes: Sequence[Outcome]) -> None:
    """Issue one ConvergenceWarning that counts the networks that did not converge, if there are any."""
    from featx.solvers import Outcome

    counts = Counter(outcome.value for outcome in outcomes if outcome is not Outcome.CONVERGED)
    if counts:
        reasons = "; ".join(f"{count} of {len(outcomes)}: {reason}" for reason, count in counts.items())
        warn(f"{cls.__name__} did not converge, {reasons}", ConvergenceWarning)
