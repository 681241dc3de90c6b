// SPDX-License-Identifier: Apache-2.0
// The search reads each page that it found to show an extract. Browsers forbid that for files on disk, where the search
// shows the titles only, without errors.
if (location.protocol === 'file:') {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
