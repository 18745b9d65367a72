// Plays a callvault recording in an <audio> element for as long as the page is open.
//
// A link ends, and an element never says so: a seek into what it has not loaded
// then waits for ever. This module notices, fetches a new link, sets it, and goes
// on where the listener was. While the old link is enough it does not touch what
// plays: swapping the source is heard.
//
// It measures how long a link lives by `expires_in_seconds` and never compares
// `expires_at` with the browser's clock, which may be wrong.

/** A link is used up so long before its end: a request takes its time. */
const MARGIN_SECONDS = 30;
/** …or, where links are short, so much of its life. */
const MARGIN_SHARE = 0.2;
/** An element that waits this long, without a byte, on a link that should work gets another one. */
const STARVED_MS = 8_000;
/** How often an element that waits is looked at. */
const WATCH_MS = 500;
/** The first wait after an answer that was none; it doubles up to the last. */
const RETRY_MS = 500;
const RETRY_MAX_MS = 15_000;
/** Fresh links in a row that could not be played: then it is no matter of links. */
const BROKEN_MAX = 4;
/** Problems that pass by themselves. */
const PASSING = new Set(["unavailable", "too_many_requests", "not_ready"]);

/**
 * Plays what `getLink` gives links to in `audio`, until the function that this
 * returns is called.
 *
 * `getLink(signal)` gives what callvault's `/link` answered: the `Response` of a
 * fetch, or its JSON (a link, the pending body of a 202, or a problem). It is
 * asked again while the recording is on its way, and when a new link is needed;
 * where it throws, it is asked again later.
 *
 * The element gets these events, each with the answer as `detail`: `pending`,
 * `ready` (each time a link is set), and, for good, `failed` or `erased`.
 *
 * `options.at` is where to begin, in seconds; `options.play` whether to begin by itself.
 */
export function attach(audio, getLink, options = {}) {
  const player = new Player(audio, getLink, options);
  player.begin();
  return () => player.detach();
}

class Player {
  #audio;
  #getLink;
  #over = new AbortController();
  #link = null; // the link that is set
  #spare = null; // a newer one, for when it is needed
  #asking = null; // the question under way, shared by whoever needs its answer
  #swap = null; // the swap under way
  #playAt; // where to begin
  #playSoon; // whether to begin
  #hungrySince = null; // since when the element waits for bytes
  #broken = 0; // fresh links in a row that could not be played
  #timer = null;
  #watch = null;

  constructor(audio, getLink, { at = 0, play = false }) {
    [this.#audio, this.#getLink, this.#playAt, this.#playSoon] = [audio, getLink, at, play];
  }

  begin() {
    const heed = (names, then) => {
      for (const name of names) this.#audio.addEventListener(name, then, { signal: this.#over.signal });
    };
    heed(["waiting", "stalled"], () => this.#isHungry());
    heed(["seeking", "play"], () => this.#isAboutToLoad());
    heed(["playing", "seeked", "canplay", "pause", "ended"], () => this.#isFed());
    heed(["progress"], () => this.#isComing());
    heed(["error"], () => this.#cannotPlay());
    // A tab that slept hears nothing of it: look at once when it wakes.
    const wake = () => !document.hidden && this.#look();
    document.addEventListener("visibilitychange", wake, { signal: this.#over.signal });
    window.addEventListener("online", wake, { signal: this.#over.signal });
    this.#renew();
  }

  detach() {
    this.#end();
    this.#unset();
  }

  // ---- when a new link is needed ----

  /** The element needs bytes that it does not have. */
  #isHungry() {
    // `stalled` comes too when a browser has loaded as much as it wants for now.
    if (this.#audio.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA && !this.#audio.seeking) return;
    this.#watchOver();
    this.#look();
  }

  /** A slow line is no reason to begin anew. */
  #isComing() {
    if (this.#hungrySince !== null) this.#hungrySince = performance.now();
  }

  #watchOver() {
    this.#hungrySince ??= performance.now();
    this.#watch ??= setInterval(() => this.#look(), WATCH_MS);
  }

  #isFed() {
    const hungry = this.#audio.seeking || (!this.#audio.paused && this.#audio.readyState < HTMLMediaElement.HAVE_FUTURE_DATA);
    if (hungry) return;
    this.#hungrySince = null;
    clearInterval(this.#watch);
    this.#watch = null;
    if (this.#audio.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) this.#broken = 0;
    if (!this.#audio.paused) this.#keepSpare();
  }

  /** It is about to ask the link for bytes: in vain, where the link is over. */
  #isAboutToLoad() {
    const { paused, seeking } = this.#audio;
    if (this.#link && isUsedUp(this.#link) && (seeking || !paused) && !this.#hasLoaded()) this.#renew();
    else if (!paused) this.#keepSpare();
  }

  #look() {
    const { seeking, paused } = this.#audio;
    if (this.#hungrySince === null || !this.#link || (paused && !seeking)) return;
    const starved = performance.now() - this.#hungrySince > STARVED_MS;
    if (isUsedUp(this.#link) || starved) this.#renew();
  }

  /** Most browsers wait for ever; some say that a link is over. */
  async #cannotPlay() {
    const { error } = this.#audio;
    if (!error || !this.#link) return;
    if (!isUsedUp(this.#link)) {
      this.#broken += 1;
      if (this.#broken > BROKEN_MAX) {
        this.#finish("failed", { code: "not_playable", detail: error.message || "The browser cannot play it." });
        return;
      }
      await this.#pause(RETRY_MS * 2 ** (this.#broken - 1));
    }
    this.#renew();
  }

  /** Whether what comes next is there already, so that the link is not needed. */
  #hasLoaded() {
    const { buffered, currentTime, duration } = this.#audio;
    for (let range = 0; range < buffered.length; range += 1) {
      const within = buffered.start(range) <= currentTime && currentTime <= buffered.end(range);
      if (within) return buffered.end(range) >= Math.min(currentTime + 2, duration - 0.1);
    }
    return false;
  }

  /** While it plays, there is a link with time left: the next need is met without a question. */
  #keepSpare() {
    clearTimeout(this.#timer);
    if (!this.#link || this.#over.signal.aborted) return;
    const newest = this.#spare ?? this.#link;
    this.#timer = setTimeout(async () => {
      if (this.#audio.paused || this.#audio.ended) return;
      this.#spare = await this.#ask();
      this.#keepSpare();
    }, Math.max(1_000, msLeft(newest)));
  }

  // ---- getting it, and setting it ----

  /** Sets a link that works. Asked for twice, it is done once. */
  #renew() {
    if (this.#over.signal.aborted) return;
    this.#swap ??= this.#setNewLink().finally(() => {
      this.#swap = null;
    });
  }

  async #setNewLink() {
    const current = this.#link;
    if (this.#spare && isUsedUp(this.#spare)) this.#spare = null;
    const link = this.#spare ?? (await this.#ask());
    if (!link || this.#over.signal.aborted) return;
    this.#spare = null;
    // Meanwhile the old one may have been enough: then nothing is touched.
    if (current && this.#hungrySince === null && !this.#audio.error && this.#hasLoaded()) {
      this.#spare = link;
    } else {
      this.#set(link);
    }
    this.#keepSpare();
  }

  #set(link) {
    const audio = this.#audio;
    const first = !this.#link;
    // What the listener did while the link was asked for counts, not what was before.
    const plays = first ? this.#playSoon || !audio.paused : !audio.paused && !audio.ended;
    const at = first ? this.#playAt : audio.currentTime;
    const rate = audio.playbackRate;
    this.#link = link;
    this.#hungrySince = null;
    audio.src = link.url;
    audio.playbackRate = rate;
    if (at > 0) this.#goTo(at);
    // Refused where the page may not play by itself: the listener presses play then.
    if (plays) audio.play().catch(() => {});
    this.#watchOver();
    this.#tell("ready", link.answer);
  }

  /** Goes there as soon as the new source is known, unless the listener goes elsewhere. */
  #goTo(at) {
    const audio = this.#audio;
    audio.currentTime = at;
    const restore = () => {
      if (audio.currentTime < 0.01) audio.currentTime = Math.min(at, audio.duration || at);
    };
    audio.addEventListener("loadedmetadata", restore, { once: true, signal: this.#over.signal });
  }

  /** Asks until there is a link; null where there will be none. */
  #ask() {
    this.#asking ??= this.#askUntilAnswered().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  async #askUntilAnswered() {
    for (let failures = 0; !this.#over.signal.aborted; ) {
      const asked = Moment.now();
      const { answer, retryAfterMs } = await this.#answer();
      if (this.#over.signal.aborted) break;
      if (typeof answer.url === "string") return { url: answer.url, asked, answer };
      if (typeof answer.code === "string" && !PASSING.has(answer.code)) {
        this.#finish(answer.code === "erased" ? "erased" : "failed", answer);
        break;
      }
      failures = retryAfterMs === null ? failures + 1 : 0;
      // With a link in use nobody needs to hear that the next one takes its time.
      if (!this.#link || this.#hungrySince !== null) this.#tell("pending", answer);
      await this.#pause(retryAfterMs ?? Math.min(RETRY_MS * 2 ** (failures - 1), RETRY_MAX_MS));
    }
    return null;
  }

  /** One answer, whatever form it has. */
  async #answer() {
    try {
      const given = await this.#getLink(this.#over.signal);
      if (!(given instanceof Response)) return { answer: given ?? {}, retryAfterMs: retryAfterMs(given, null) };
      const json = await given.json().catch(() => ({}));
      const passing = given.ok || given.status >= 500 || given.status === 429 || given.status === 408;
      const answer = passing || json.code ? json : { ...json, code: `http_${given.status}`, status: given.status };
      return { answer, retryAfterMs: retryAfterMs(json, given.headers.get("retry-after")) };
    } catch (error) {
      return { answer: { detail: String(error?.message ?? error) }, retryAfterMs: null };
    }
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#over.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
  }

  // ---- telling, and the end ----

  #finish(type, answer) {
    this.#end();
    this.#unset();
    this.#tell(type, answer);
  }

  #end() {
    this.#over.abort();
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
  }

  /** Nothing goes on loading or playing; what someone else has set is theirs. */
  #unset() {
    if (!this.#link || this.#audio.src !== new URL(this.#link.url, document.baseURI).href) return;
    this.#audio.pause();
    this.#audio.removeAttribute("src");
    this.#audio.load();
  }

  #tell(type, detail) {
    this.#audio.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** A moment by two clocks: one stands still while a machine sleeps, the other may be set. */
const Moment = {
  now: () => ({ steady: performance.now(), wall: Date.now() }),
  msSince: (then) => Math.max(performance.now() - then.steady, Date.now() - then.wall),
};

/** How long a link may still be used, in milliseconds. */
function msLeft({ asked, answer }) {
  const life = Number(answer.expires_in_seconds);
  // Without an end it is believed in until it does not play.
  if (!Number.isFinite(life)) return 2 ** 31 - 1;
  const usable = life - Math.min(MARGIN_SECONDS, life * MARGIN_SHARE);
  return Math.min(usable * 1_000 - Moment.msSince(asked), 2 ** 31 - 1);
}

function isUsedUp(link) {
  return msLeft(link) <= 0;
}

function retryAfterMs(body, header) {
  const seconds = Number(body?.retry_after_seconds ?? header ?? Number.NaN);
  return Number.isFinite(seconds) ? Math.max(0.2, Math.min(seconds, 60)) * 1_000 : null;
}
