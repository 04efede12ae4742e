export {
  Capsule,
  type CapsuleFilter,
  type CapsuleInfo,
  type CapsuleState,
  type CreateOptions,
  type EnvValue,
  type ForkOptions,
  type MetricPoint,
  type MetricsRange,
  type TemplateInfo,
} from "./capsule.js";
export { type ErrorCode, WrennError } from "./errors.js";
export type { ExecOptions, ExecResult, Execution, Line, ProcessOptions } from "./exec.js";
export type {
  AsUser,
  FileChangeKind,
  FileEntry,
  FileEvent,
  FileKind,
  Files,
  ReadOptions,
  UrlOptions,
  WatchOptions,
  WriteOptions,
} from "./files.js";
export type { LiveOptions } from "./live.js";
export type { Cursor, Exit, OutputChunk, OutputEvent, OutputGap, StreamName } from "./output.js";
export type { Port, Ports } from "./ports.js";
export type { Following, FollowOptions, Process, ProcessInfo, Signal, StartOptions } from "./process.js";
export type { AttachOptions, Pty, PtyOptions } from "./pty.js";
export type { SignedUrl } from "./signed.js";
export type { Data } from "./sources.js";
export type { Stdin } from "./stdin.js";
export { type RequestOptions, Wrenn, type WrennOptions } from "./wrenn.js";
