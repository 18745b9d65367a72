// Numbers, times and names as people read them.

const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const CLOCK_EXACT = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const NOTHING = "–";

export function day(time) {
  return time ? DAY.format(new Date(time)) : NOTHING;
}

export function clock(time) {
  return time ? CLOCK.format(new Date(time)) : "";
}

export function moment(time) {
  return time ? `${DAY.format(new Date(time))}, ${CLOCK_EXACT.format(new Date(time))}` : NOTHING;
}

/** 65 is 1:05. */
export function length(seconds) {
  if (!Number.isFinite(seconds)) return NOTHING;
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3_600), Math.floor(whole / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export function spoken(seconds) {
  const whole = Math.floor(seconds);
  return whole < 60 ? `${whole} seconds` : `${Math.floor(whole / 60)} minutes ${whole % 60} seconds`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return NOTHING;
  const units = ["B", "KB", "MB", "GB"];
  const unit = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  const number = bytes / 1_000 ** unit;
  return `${number.toFixed(unit > 0 && number < 10 ? 1 : 0)} ${units[unit]}`;
}

/** The kind of a whole SID: CA, CF, RE or AC; null is none. */
export function kindOfSid(text) {
  return /^(CA|CF|RE|AC)[0-9a-fA-F]{32}$/.exec(text)?.[1] ?? null;
}
