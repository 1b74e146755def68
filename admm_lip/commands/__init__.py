"""One file per command of ``admm-lip``, each with ``parser()`` and ``run(options)``."""
