/**
 * How a volume's directory and the files of its home look: those that look different than they did when they were looked at
 * last were changed, or exchanged, behind our back.
 */

import { stat } from 'node:fs/promises';

/** Which directory a volume was last seen in: a copy of it must not share its points. */
export interface DirectoryIdentity {
  readonly device: string;
  readonly inode: string;
}

/** How a file looked, such as the home at the clean stop; one that looks different was changed behind our back. */
export interface HomeStamp {
  readonly sizeBytes: string;
  readonly inode: string;
  readonly modifiedNs: string;
}

/** How the files looked that a home consists of, by their places. */
export type HomeStamps = Readonly<Record<string, HomeStamp>>;

export async function directoryIdentity(directory: string): Promise<DirectoryIdentity> {
  const { dev, ino } = await stat(directory, { bigint: true });
  return { device: String(dev), inode: String(ino) };
}

/** How a file looks now; undefined where it is no regular file and cannot be watched. */
export async function homeStamp(path: string): Promise<HomeStamp | undefined> {
  const found = await stat(path, { bigint: true });
  if (!found.isFile()) return undefined;
  return { sizeBytes: String(found.size), inode: String(found.ino), modifiedNs: String(found.mtimeNs) };
}
