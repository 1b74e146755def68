"""What the package refuses, each error naming the culprit and the next step."""


class NetworkError(ValueError):
    """A malformed network: shapes that do not chain, values that are not finite."""


class UnsupportedModule(NetworkError):
    """A module, a function or an option that is not an affine map or a known activation."""


class CertificateError(ValueError):
    """A certificate that cannot be read, is of another network, or does not prove its bound."""
