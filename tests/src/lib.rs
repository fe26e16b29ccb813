//! Harness of the integration suites.
