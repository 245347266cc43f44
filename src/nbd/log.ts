/** How the room reports what no reply can tell: to whoever runs the server. */

export interface NbdLogEvent {
  readonly level: 'info' | 'warning' | 'error';
  /** One sentence without a full stop. */
  readonly message: string;
  /** The peer the event is about, such as `tcp 127.0.0.1:40312`. */
  readonly peer?: string;
  readonly exportName?: string;
  /** What was thrown, where something was. */
  readonly error?: unknown;
}

export type NbdLog = (event: NbdLogEvent) => void;
