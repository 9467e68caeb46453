// Detects objects in a folder of images with an exported model.
#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../../src/ops/csrc/parallel.h"
#include "annotations.h"
#include "branch.h"
#include "detector.h"
#include "files.h"
#include "image.h"
#include "results.h"
#include "sidecar.h"

namespace rcnn {
namespace {

constexpr int kUnreadable = 3;  // exit status: done, but some images couldn't be read

const char kUsage[] =
    "usage: rcnn_infer --model MODEL --input FOLDER --output FOLDER [options]\n"
    "       rcnn_infer --model MODEL --self_check [options]\n"
    "\n"
    "  --model MODEL         an exported model, or its sidecar (.json)\n"
    "  --input FOLDER        JPEG and PNG images\n"
    "  --recursive           those of the folders in it too; results lie in folders alike\n"
    "  --output FOLDER       one result NAME.det for each image, and summary.json\n"
    "  --device_type TYPE    CPU or Ascend (default CPU)\n"
    "  --device_id N         which Ascend device (default 0)\n"
    "  --threads N           on the CPU (default: all cores)\n"
    "  --runtime NAME        on the CPU: own, the program's, or lite, MindSpore Lite (default own; of the whole form "
    "lite)\n"
    "  --batch_size N        images the network takes at once (default: the model's)\n"
    "  --width N --height N  canvas, of the split form alone (default: the model's); where upright pictures have it\n"
    "                        turned, the lying one\n"
    "  --keep_ratio 0|1      images keep their proportions (default: the model's)\n"
    "  --exif POLICY         turn images as their EXIF orientation says: upright always, stored never, auto where\n"
    "                        --annotations has the upright picture's size (default auto)\n"
    "  --annotations FILE    COCO annotations of the images, for --exif auto\n"
    "  --aipp_config FILE    normalise on the Ascend chip; NAME-upright.cfg beside NAME.cfg is for upright pictures,\n"
    "                        where these have the canvas turned\n"
    "  --self_check          compare the model's graphs with what Python gave; alone, or before the images\n"
    "\n"
    "exit status: 0; 2 nothing or not all was done, the reason in one line; 3 done, but some images are unreadable\n";

struct Options {
  std::string model, input, output, annotations, exif = "auto";
  Device device;
  std::string runtime;
  int64_t batch_size = 0, width = 0, height = 0;
  int keep_ratio = -1;
  bool self_check = false, recursive = false;
};

int64_t ParseNumber(const std::string &name, const std::string &text, int64_t low, int64_t high) {
  char *end = nullptr;
  errno = 0;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < low || value > high) {
    throw UserError(name + ": " + text + " is not a number from " + std::to_string(low) + " to " +
                    std::to_string(high));
  }
  return value;
}

bool ParseBool(const std::string &name, std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  if (text == "1" || text == "true") return true;
  if (text == "0" || text == "false") return false;
  throw UserError(name + ": " + text + " is neither true nor false");
}

Options ParseOptions(int argc, char **argv) {
  Options out;
  out.device.threads = NumThreads();
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i], value;
    if (name == "--self_check") {
      out.self_check = true;
      continue;
    }
    if (name == "--recursive") {
      out.recursive = true;
      continue;
    }
    const size_t equals = name.find('=');
    if (equals != std::string::npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    } else if (i + 1 < argc) {
      value = argv[++i];
    } else {
      throw UserError(name + ": needs a value; rcnn_infer --help lists the options");
    }
    if (name == "--model") {
      out.model = value;
    } else if (name == "--input") {
      out.input = value;
    } else if (name == "--output") {
      out.output = value;
    } else if (name == "--device_type") {
      if (value != "CPU" && value != "Ascend") {
        throw UserError("--device_type: " + value + " is neither CPU nor Ascend");
      }
      out.device.ascend = value == "Ascend";
    } else if (name == "--device_id") {
      out.device.id = static_cast<int>(ParseNumber(name, value, 0, 4095));
    } else if (name == "--threads") {
      out.device.threads = static_cast<int>(ParseNumber(name, value, 1, 1024));
    } else if (name == "--runtime") {
      if (value != "own" && value != "lite") throw UserError("--runtime: " + value + " is neither own nor lite");
      out.runtime = value;
    } else if (name == "--batch_size") {
      out.batch_size = ParseNumber(name, value, 1, 1024);
    } else if (name == "--width") {
      out.width = ParseNumber(name, value, 1, 1 << 16);
    } else if (name == "--height") {
      out.height = ParseNumber(name, value, 1, 1 << 16);
    } else if (name == "--keep_ratio") {
      out.keep_ratio = ParseBool(name, value) ? 1 : 0;
    } else if (name == "--exif") {
      if (value != "auto" && value != "upright" && value != "stored") {
        throw UserError("--exif: " + value + " is none of auto, upright, stored");
      }
      out.exif = value;
    } else if (name == "--annotations") {
      out.annotations = value;
    } else if (name == "--aipp_config") {
      out.device.aipp = value;
    } else {
      throw UserError(name + ": no such option; rcnn_infer --help lists them");
    }
  }
  if (out.model.empty()) throw UserError("--model: missing; rcnn_infer --help lists the options");
  const bool folders = !out.input.empty() && !out.output.empty();
  if (!folders && (!out.self_check || !out.input.empty() || !out.output.empty())) {
    throw UserError("--input and --output: both are needed; rcnn_infer --help lists the options");
  }
  if (out.device.ascend && out.runtime == "own") {
    throw UserError("--runtime: the program's own runtime is for the CPU; on Ascend it is lite");
  }
  if (!out.device.aipp.empty()) {
    if (!out.device.ascend) throw UserError("--aipp_config: AIPP is the Ascend chip's; give --device_type Ascend");
    ReadFile(out.device.aipp, "AIPP configuration");
  }
  return out;
}

std::string SizeText(int64_t height, int64_t width) { return std::to_string(width) + " x " + std::to_string(height); }

std::string CanvasText(const Sidecar &sidecar) {
  return "the model's canvas, " + SizeText(sidecar.height, sidecar.width) + ",";
}

// What the command line changes of the model's own settings.
void Apply(const Options &options, Sidecar *sidecar) {
  // of two models, one for each orientation, the options mean the lying one's
  const bool upright = sidecar->Turns() && sidecar->height > sidecar->width;
  if (upright) std::swap(sidecar->width, sidecar->height);
  const int64_t width = options.width > 0 ? options.width : sidecar->width;
  const int64_t height = options.height > 0 ? options.height : sidecar->height;
  const int64_t batch = options.batch_size > 0 ? options.batch_size : sidecar->batch_size;
  if (sidecar->whole && (width != sidecar->width || height != sidecar->height || batch != sidecar->batch_size)) {
    throw UserError(sidecar->path + ": exported for batches of " + std::to_string(sidecar->batch_size) + " on " +
                    std::to_string(sidecar->width) + " x " + std::to_string(sidecar->height) +
                    " (width x height); export it for others with --batch_size, --width and --height");
  }
  const int64_t step = sidecar->canvas_step;
  if (!sidecar->whole && (width % step != 0 || height % step != 0)) {
    throw UserError("--width and --height: " + std::to_string(width) + " x " + std::to_string(height) +
                    " isn't in steps of " + std::to_string(step));
  }
  if (sidecar->Turns() && height > width) {
    throw UserError("--width and --height: " + std::to_string(width) + " x " + std::to_string(height) +
                    " stands; give the lying canvas, which is turned for upright pictures");
  }
  sidecar->width = width;
  sidecar->height = height;
  if (upright) std::swap(sidecar->width, sidecar->height);
  if (width == height) sidecar->turned = {};
  sidecar->batch_size = batch;
  if (options.keep_ratio >= 0) sidecar->keep_ratio = options.keep_ratio == 1;
}

// Refuses a canvas whose image and finest maps alone, some 100 bytes a pixel, are more than there is memory.
void CheckCanvas(const Options &options, const Sidecar &sidecar) {
  const double bytes = 100.0 * static_cast<double>(sidecar.width) * static_cast<double>(sidecar.height);
  double most = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  struct rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    most = std::min(most, static_cast<double>(limit.rlim_cur));
  }
  if (bytes <= most) return;
  const bool given = options.width > 0 || options.height > 0;
  throw UserError(sidecar.path + ": " + CanvasText(sidecar) + " takes at least " +
                  std::to_string(static_cast<int64_t>(bytes / 1e9)) + " GB, more than this machine's memory; " +
                  (given ? "lower --width and --height"
                         : "give a smaller --width and --height (split form), or export it for a smaller canvas"));
}

bool HasImageName(std::string name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string::npos) return false;
  std::string ending = name.substr(dot + 1);
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return ending == "jpg" || ending == "jpeg" || ending == "jpe" || ending == "png";
}

// Adds the images of options.input/below, by their paths in options.input. `above`: the folders on the way to it, by
// device and inode, so that links that lead back end.
void AddImages(const Options &options, const std::string &below, std::vector<std::pair<dev_t, ino_t>> *above,
               std::vector<std::string> *images, Summary *summary) {
  const std::string folder = options.input + "/" + below;
  DIR *handle = opendir(folder.c_str());
  if (handle == nullptr) {
    throw UserError((below.empty() ? options.input : folder) + ": can't read the folder of images: " + SystemReason());
  }
  std::vector<std::string> names;
  while (const dirent *entry = readdir(handle)) {
    if (entry->d_name[0] != '.') names.push_back(entry->d_name);
  }
  closedir(handle);
  for (const std::string &name : names) {
    const std::string path = below + name;
    struct stat status{};
    if (stat((options.input + "/" + path).c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
      (HasImageName(name) ? *images : summary->not_images).push_back(path);
      continue;
    }
    const std::pair<dev_t, ino_t> place{status.st_dev, status.st_ino};
    if (!options.recursive) summary->folders.push_back(path);
    if (!options.recursive || std::find(above->begin(), above->end(), place) != above->end()) continue;
    above->push_back(place);
    AddImages(options, path + "/", above, images, summary);
    above->pop_back();
  }
}

// The folder's images in order of their names; its other files go to summary->not_images.
std::vector<std::string> ListImages(const Options &options, Summary *summary) {
  std::vector<std::string> out;
  std::vector<std::pair<dev_t, ino_t>> above;
  struct stat status{};
  if (stat(options.input.c_str(), &status) == 0) above.emplace_back(status.st_dev, status.st_ino);
  AddImages(options, "", &above, &out, summary);
  std::sort(out.begin(), out.end());
  std::sort(summary->not_images.begin(), summary->not_images.end());
  std::sort(summary->folders.begin(), summary->folders.end());
  if (out.empty() && !summary->folders.empty()) {
    throw UserError(options.input + ": holds no .jpg, .jpeg or .png image itself, but folders (" + summary->folders[0] +
                    (summary->folders.size() > 1 ? ", ..." : "") + "); --recursive takes those in them");
  }
  if (out.empty()) throw UserError(options.input + ": holds no .jpg, .jpeg or .png image");
  return out;
}

// What an image is to be turned by.
struct Frames {
  std::string policy;
  std::vector<std::array<int64_t, 2>> annotated;  // of each image, or {0, 0}
};

Frames FindFrames(const Options &options, const std::vector<std::string> &names) {
  Frames out{options.exif, std::vector<std::array<int64_t, 2>>(names.size(), {0, 0})};
  if (options.annotations.empty()) return out;
  const AnnotatedSizes sizes(options.annotations);
  const std::string folder = std::filesystem::absolute(options.input).lexically_normal().string();
  size_t unknown = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    out.annotated[i] = sizes.Find(folder + "/" + names[i]);
    unknown += out.annotated[i][0] == 0 ? 1 : 0;
  }
  if (unknown > 0) {
    std::fprintf(stderr, "%zu of %zu images have no size in %s, which says nothing of how to turn them\n", unknown,
                 names.size(), options.annotations.c_str());
  }
  return out;
}

// The picture, turned as `frames` wants image `i`. Throws UserError where it isn't of the annotated size.
Picture DecodeTurned(const std::vector<uint8_t> &bytes, const Frames &frames, size_t i) {
  Picture picture = DecodeImage(bytes);
  const std::array<int64_t, 2> &annotated = frames.annotated[i];
  const int orientation = ExifOrientation(bytes);
  picture =
      Turn(std::move(picture), OrientationFor(frames.policy, {picture.height, picture.width}, orientation, annotated));
  if (annotated[0] > 0 && (annotated[0] != picture.height || annotated[1] != picture.width)) {
    const bool turned = annotated[0] == picture.width && annotated[1] == picture.height && orientation > 4;
    throw UserError(SizeText(picture.height, picture.width) + " pixels, but annotated as " +
                    SizeText(annotated[0], annotated[1]) +
                    (turned ? ": its size by EXIF orientation; use --exif auto" : ": was it resized since?"));
  }
  return picture;
}

double Milliseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - since).count();
}

struct Read {
  Prepared image;
  std::string fault;  // why it can't be read, or empty
  bool canvas_too_large = false;
};

Read ReadImage(const std::string &folder, const std::string &name, const Sidecar &sidecar, const Frames &frames,
               size_t i) {
  const auto begin = std::chrono::steady_clock::now();
  Read out;
  out.image.name = name;
  try {
    const std::vector<uint8_t> bytes = ReadFile(folder + "/" + name, "image");
    const Picture whole = DecodeTurned(bytes, frames, i);
    const Canvas canvas = sidecar.CanvasOf(whole.height, whole.width);
    const auto size =
        FitSize(whole.height, whole.width, canvas.height, canvas.width, sidecar.keep_ratio, sidecar.resize);
    out.image.height = whole.height;
    out.image.width = whole.width;
    out.image.canvas = canvas;
    out.canvas_too_large = canvas.height * canvas.width > whole.height * whole.width;
    out.image.picture = Resize(whole, size[0], size[1], sidecar.resize.filter);
    out.canvas_too_large = false;
    if (!sidecar.to_rgb) SwapRedAndBlue(&out.image.picture);
  } catch (const UserError &e) {
    out.fault = e.what();
  } catch (const std::bad_alloc &) {
    out.fault = "larger than this machine's memory";
  }
  out.image.decode_ms = Milliseconds(begin);
  return out;
}

// Reads images in a thread of its own, a few ahead of who takes them.
class Reader {
 public:
  Reader(const std::string &folder, const std::vector<std::string> &names, const Sidecar &sidecar, const Frames &frames,
         size_t ahead)
      : thread_([this, &folder, &names, &sidecar, &frames, ahead]() {
          for (size_t i = 0; i < names.size(); ++i) {
            Read read = ReadImage(folder, names[i], sidecar, frames, i);
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [&]() { return done_.size() < ahead || stop_; });
            if (stop_) return;
            done_.push_back(std::move(read));
            changed_.notify_all();
          }
        }) {}
  ~Reader() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Read Take() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&]() { return !done_.empty(); });
    Read out = std::move(done_.front());
    done_.pop_front();
    changed_.notify_all();
    return out;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Read> done_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the others
};

void MakeFolder(const std::string &path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    mkdir(path.substr(0, slash).c_str(), 0755);
  }
  struct stat status{};
  if (mkdir(path.c_str(), 0755) != 0 && (stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode))) {
    throw UserError(path + ": can't make the folder of results: " + SystemReason());
  }
}

// Times by stage, in the order in which the stages ran first.
class TimeTable {
 public:
  explicit TimeTable(Summary *summary) : times_(&summary->times) {}

  void Add(const std::string &stage, double milliseconds) {
    auto found = std::find_if(times_->begin(), times_->end(), [&](const auto &entry) { return entry.first == stage; });
    if (found == times_->end()) found = times_->insert(times_->end(), {stage, {}});
    found->second.push_back(milliseconds);
  }

 private:
  std::vector<std::pair<std::string, std::vector<double>>> *times_;
};

// Detects in a batch and writes the results.
void RunBatch(const std::string &folder, const Sidecar &sidecar, const std::vector<Prepared> &batch, Detector *detector,
              TimeTable *table, Summary *summary) {
  const auto detect_begin = std::chrono::steady_clock::now();
  StageTimes times;
  const std::vector<Detections> found = detector->Detect(batch, &times);
  for (const auto &[stage, milliseconds] : times) table->Add(stage, milliseconds);
  const auto write_begin = std::chrono::steady_clock::now();
  std::vector<Field> fields;
  for (const auto &branch : sidecar.branches) fields.push_back(branch->Result());
  for (size_t k = 0; k < batch.size(); ++k) {
    const std::vector<uint8_t> bytes = PackResult(batch[k], found[k], fields);
    const size_t slash = batch[k].name.rfind('/');
    if (slash != std::string::npos) MakeFolder(folder + "/" + batch[k].name.substr(0, slash));
    WriteFile(folder + "/" + batch[k].name + ".det", bytes.data(), bytes.size());
    summary->images.push_back(batch[k].name);
  }
  table->Add("writing", Milliseconds(write_begin));
  table->Add("batch", Milliseconds(detect_begin));
}

void RunFolder(const Options &options, const Sidecar &sidecar, const std::vector<std::string> &names,
               const Frames &frames, Detector *detector, Summary *summary) {
  const auto begin = std::chrono::steady_clock::now();
  const size_t batch_size = static_cast<size_t>(sidecar.batch_size);
  const bool terminal = isatty(STDERR_FILENO) == 1;
  Reader reader(options.input, names, sidecar, frames, batch_size + 1);
  TimeTable table(summary);
  // a batch has one canvas: lying pictures wait apart from upright ones
  std::array<std::vector<Prepared>, 2> waiting;
  const auto run = [&](std::vector<Prepared> *batch) {
    RunBatch(options.output, sidecar, *batch, detector, &table, summary);
    batch->clear();
  };
  for (size_t i = 0; i < names.size(); ++i) {
    const auto take_begin = std::chrono::steady_clock::now();
    Read read = reader.Take();
    if (read.canvas_too_large) {
      throw UserError(sidecar.path + ": " + CanvasText(sidecar) +
                      " is larger than this machine's memory; lower --width and --height, or export a smaller one");
    }
    std::vector<Prepared> &batch = waiting[read.image.canvas.IsUpright() ? 1 : 0];
    if (batch.empty()) table.Add("waiting", Milliseconds(take_begin));
    if (read.fault.empty()) {
      table.Add("reading", read.image.decode_ms);
      batch.push_back(std::move(read.image));
    } else {
      std::fprintf(stderr, "%s: %s\n", read.image.name.c_str(), read.fault.c_str());
      summary->unreadable.emplace_back(read.image.name, read.fault);
    }
    if (batch.size() == batch_size) run(&batch);
    if (terminal) std::fprintf(stderr, "\r%zu of %zu images", i + 1, names.size());
  }
  for (std::vector<Prepared> &batch : waiting) {
    if (!batch.empty()) run(&batch);
  }
  std::sort(summary->images.begin(), summary->images.end());
  if (terminal) std::fprintf(stderr, "\n");
  summary->seconds = Milliseconds(begin) / 1e3;
}

int Run(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--help" || std::string(argv[i]) == "-h") {
      std::fputs(kUsage, stdout);
      return 0;
    }
  }
  Options options = ParseOptions(argc, argv);
  // one rule for the runtime's threads and for ours
  setenv("RCNN_NUM_THREADS", std::to_string(options.device.threads).c_str(), 1);
  Sidecar sidecar = ReadSidecar(options.model);
  if (!sidecar.has_checksum) {
    std::fprintf(stderr, "%s: of an older export, without a checksum of its own: not checked for damage\n",
                 OneLine(sidecar.path).c_str());
  }
  options.device.lite = options.runtime.empty() ? sidecar.whole && kHasLite : options.runtime == "lite";
  Apply(options, &sidecar);
  CheckCanvas(options, sidecar);
  Summary summary;
  summary.threads = options.device.threads;
  summary.device = options.device.ascend ? "Ascend" : "CPU";
  std::vector<std::string> names;
  Frames frames;
  if (!options.input.empty()) {
    names = ListImages(options, &summary);
    frames = FindFrames(options, names);
    MakeFolder(options.output);
    // an older run's summary would pass for this one's, were this one cut short
    unlink((options.output + "/summary.json").c_str());
  }
  const auto begin = std::chrono::steady_clock::now();
  const std::unique_ptr<Detector> detector = MakeDetector(sidecar, options.device);
  summary.load_seconds = Milliseconds(begin) / 1e3;
  if (options.self_check) detector->SelfCheck();
  if (options.input.empty()) return 0;

  RunFolder(options, sidecar, names, frames, detector.get(), &summary);
  WriteFile(options.output + "/summary.json", SummaryJson(summary, sidecar));
  PrintSummary(summary);
  if (!summary.folders.empty()) {
    std::printf("%zu folders passed over, whose images --recursive takes: %s%s\n", summary.folders.size(),
                summary.folders[0].c_str(), summary.folders.size() > 1 ? ", ..." : "");
  }
  if (!summary.not_images.empty()) {
    std::printf("%zu files left out, no .jpg, .jpeg or .png: %s%s\n", summary.not_images.size(),
                summary.not_images[0].c_str(), summary.not_images.size() > 1 ? ", ..." : "");
  }
  if (summary.unreadable.empty()) return 0;
  std::string list;
  for (const auto &[name, reason] : summary.unreadable) list += (list.empty() ? "" : ", ") + name;
  std::fflush(stdout);
  std::fprintf(stderr, "error: %zu of %zu images unreadable: %s\n", summary.unreadable.size(), names.size(),
               list.c_str());
  return kUnreadable;
}

}  // namespace
}  // namespace rcnn

int main(int argc, char **argv) {
  // the runtime's warnings tell nothing of ours
  setenv("GLOG_v", "3", 0);
  // a file that may grow no further is told like a full disk, and a closed pipe like any other fault
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return rcnn::Run(argc, argv);
  } catch (const rcnn::UserError &e) {
    std::fprintf(stderr, "error: %s\n", e.what());
  } catch (const std::bad_alloc &) {
    std::fprintf(stderr, "error: not enough memory; lower --batch_size or the canvas\n");
  } catch (const std::exception &e) {
    std::fprintf(stderr, "error: %s\n", rcnn::OneLine(e.what()).c_str());
  }
  return 2;
}
