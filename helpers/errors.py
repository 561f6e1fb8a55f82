"""Errors that say what was received, what was expected and what to do."""


class TutorialError(Exception):
    """Base of all errors that this project raises on purpose."""


class DataError(TutorialError):
    """A data file is not what a task needs; names the file, the line and the column."""


class ModelError(TutorialError):
    """A model or its files cannot be used."""


class AdapterError(TutorialError):
    """An adapter does not fit the model it is loaded into."""


class ParameterError(TutorialError):
    """A parameter of a notebook or a helper has a value that cannot work."""


class OfflineError(TutorialError):
    """Something must be fetched and the network or the hub does not answer."""


class DeviceError(TutorialError):
    """The chosen processor cannot do what was asked of it."""
