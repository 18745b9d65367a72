// The API key of this tab. It is kept in the tab's own storage, which ends with
// the tab, and goes nowhere but to this service.

const NAME = "callvault.key";

export const session = {
  get key() {
    return sessionStorage.getItem(NAME);
  },
  signIn(key) {
    sessionStorage.setItem(NAME, key);
  },
  signOut() {
    sessionStorage.removeItem(NAME);
  },
};
