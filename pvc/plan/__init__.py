# SPDX-License-Identifier: Apache-2.0
"""Pure decisions: facts and configuration in, frozen plans out."""
